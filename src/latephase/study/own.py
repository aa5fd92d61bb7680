"""Functions of one's own, in a file or a module, and when their code has changed."""

import hashlib
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def find_function(name: str) -> Callable[..., object]:
    """Return a function.

    What goes wrong inside the file or the module is raised as it is.

    Args:
        name: ``path/to/my_file.py:function`` or ``package.module:function``.

    Raises:
        ValueError: If there is no such file, module or function; the message names the nearest.
    """
    place, _, wanted = name.rpartition(":")
    module = _run_file(Path(place)) if place.endswith(".py") else _import_module(place)
    function = getattr(module, wanted, None)
    if callable(function):
        return function
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    nearest = get_close_matches(wanted, functions, cutoff=0.3)
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    raise ValueError(f"{place} has no function {wanted!r}.{hint}")


def code_hash(name: str) -> str | None:
    """Return a SHA-256 hash of the file that a function's name (see `find_function`) begins with.

    None where there is no such file, as for what is in a module: the version of a package is for its author to tell.
    """
    path = Path(name.rpartition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".py" and path.is_file() else None


def _run_file(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"{__name__}.{path.stem}", path)  # a name of its own: it shadows nothing
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{path}: no such file")
    module = module_from_spec(spec)
    _make_importable(path.parent)
    sys.modules[module.__name__] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{name!r} is not the name of a module; the path of a file ends in .py")
    _make_importable(Path())
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # another one, which this module imports
        raise ValueError(
            f"no module {error.name!r}, needed for the module {name!r}; the path of a file ends in .py"
        ) from error


def _make_importable(folder: Path) -> None:
    """Let files import their neighbours, as they can when Python runs them itself; installed modules go first."""
    path = str(folder.resolve())
    if path not in sys.path:
        sys.path.append(path)
