"""What to say where a framework is not installed."""

from __future__ import annotations


def install_first(extra: str, package: str, error: ImportError) -> ImportError:
    """Return the error that names the extra.

    Args:
        extra: The extra of this package that brings it.
        package: What is missing.
        error: What Python said.
    """
    return ImportError(f"latephase.integrations.{extra} needs {package}: pip install 'latephase[{extra}]' ({error})")
