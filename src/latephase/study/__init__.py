"""Late-phase experiments: train, by default with SGD, then compare ways to spend the rest of the budget.

Needs the extra `latephase[study]`. The optimizer never imports this package.
"""

from importlib.util import find_spec

for _package in ("typer", "pandas", "matplotlib"):  # some of the extra's
    if find_spec(_package) is None:
        raise ModuleNotFoundError(
            f"latephase.study needs the package {_package!r}: pip install 'latephase[study]'", name=_package
        )
