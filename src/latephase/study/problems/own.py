"""Problems of one's own: built by a function in a file or a module."""

import inspect
import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from latephase.study.problems.problem import Problem
from latephase.study.threads import threads


def build_own(name: str) -> Problem:
    """Return what a function returns when it is called without arguments.

    What goes wrong inside the file, the module or the function is raised as it is. The number of threads that they
    leave PyTorch with is put back: that of the runs is `Problem.cpu_threads`.

    Args:
        name: ``path/to/my_problem.py:build`` or ``package.module:build``.

    Raises:
        ValueError: If there is no such file, module or function, or it does not return a `Problem`.
    """
    with threads(None):
        return _build(name)


def _build(name: str) -> Problem:
    place, _, function = name.rpartition(":")
    module = _run_file(Path(place)) if place.endswith(".py") else _import_module(place)
    build = getattr(module, function, None)
    if not callable(build):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        nearest = get_close_matches(function, functions, cutoff=0.3)
        hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
        raise ValueError(f"{place} has no function {function!r}.{hint}")
    try:
        inspect.signature(build).bind()
    except TypeError as error:
        raise ValueError(f"{name} cannot be called without arguments ({error})") from error
    problem = build()
    if not isinstance(problem, Problem):
        raise ValueError(f"{name} returned {type(problem).__name__}, expected latephase.study.problems.Problem")
    return problem


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
