"""Problems that a function of one's own builds."""

import sys

import pytest

from latephase.study.problems import find_problem

MY_PROBLEM = """
from __future__ import annotations

from dataclasses import dataclass, replace

from my_settings import EPOCHS

from latephase.study.problems import PROBLEMS

SEVEN = 7


@dataclass
class Something:
    x: int


def build():
    return replace(PROBLEMS["digits_cnn"], name="mine", epochs=EPOCHS)


def build_nothing():
    return None


def build_with(argument):
    return build()


def fail():
    raise KeyError("from within")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory, with a problem in a file and one in a package, and what both import."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "mine.py").write_text(MY_PROBLEM)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "my_problem.py").write_text(MY_PROBLEM)
    for place in (tmp_path, tmp_path / "elsewhere"):
        (place / "my_settings.py").write_text("EPOCHS = 3\n")
    monkeypatch.chdir(tmp_path)
    path = sys.path.copy()
    yield tmp_path
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]  # no others: what a library has registered elsewhere it cannot register twice


def test_from_a_file_which_may_import_its_neighbours(folder):
    for path in (folder / "elsewhere" / "my_problem.py", "elsewhere/my_problem.py", "./elsewhere/my_problem.py"):
        problem = find_problem(f"{path}:build")
        assert (problem.name, problem.epochs) == ("mine", 3)


def test_from_a_module():
    assert find_problem("package.mine:build").epochs == 3


def test_a_file_may_be_called_like_an_installed_module(folder):
    (folder / "elsewhere" / "my_problem.py").rename(folder / "elsewhere" / "torch.py")
    torch = sys.modules["torch"]
    assert find_problem("elsewhere/torch.py:build").epochs == 3
    assert sys.modules["torch"] is torch


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("elsewhere/other.py:build", "elsewhere/other.py: no such file"),
        ("elsewhere.py:build", "elsewhere.py: no such file"),
        ("package.other:build", "no module 'package.other', needed for the module 'package.other'"),
        ("absent.mine:build", "no module 'absent', needed for the module 'absent.mine'"),
        ("else/where:build", "'else/where' is not the name of a module; the path of a file ends in .py"),
        (":build", "'' is not the name of a module"),
        ("package.mine:biuld", "package.mine has no function 'biuld'. Did you mean 'build'"),
        ("elsewhere/my_problem.py:biuld", "elsewhere/my_problem.py has no function 'biuld'. Did you mean 'build'"),
        ("package.mine:", "package.mine has no function ''"),
        ("package.mine:SEVEN", "package.mine has no function 'SEVEN'"),
        ("package.mine:build_nothing", "package.mine:build_nothing returned NoneType, expected .*Problem"),
        ("package.mine:build_with", "package.mine:build_with .*without arguments"),
        ("elsewhere/my_problem.py", "unknown problem 'elsewhere/my_problem.py'.*'elsewhere/my_problem.py:FUNCTION'"),
    ],
)
def test_what_cannot_be_built(name, message):
    with pytest.raises(ValueError, match=message):
        find_problem(name)


def test_errors_from_within_are_left_as_they_are(folder):
    with pytest.raises(KeyError, match="from within"):
        find_problem("package.mine:fail")
    (folder / "package" / "broken.py").write_text("import a_module_that_is_absent\n")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_absent"):
        find_problem("package.broken:build")
