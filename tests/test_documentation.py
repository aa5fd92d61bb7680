"""What documentation keeps to: examples of every public name, lines that fit, one dialect in docstrings."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import latephase
import latephase.curvature
import latephase.parts
from tests.pages import python

ROOT = Path(__file__).parents[1]
SOURCES = sorted(Path(latephase.__file__).parent.rglob("*.py"))

# What docs/study.md names for use from Python.
STUDY = {
    "study.analysis.results": ["Results", "load_results"],
    "study.data": ["Data", "Split"],
    "study.problems": ["Metric", "Problem", "find_problem"],
    "study.runs.records": ["LateRun", "Training"],
    "study.runs.store": ["Store"],
    "strategies.hf": ["HF"],
    "strategies.strategy": ["Family", "Strategy", "Trainer"],
    "strategies.swa": ["SWA"],
    "strategies.trainer": ["NetworkTrainer"],
}


def public_names() -> Iterator[tuple[str, str]]:
    for module in (latephase, latephase.curvature, latephase.parts):
        yield from ((module.__name__, name) for name in module.__all__)
    for place, names in STUDY.items():
        yield from ((f"latephase.{place}", name) for name in names)


@pytest.mark.parametrize(("module", "name"), list(public_names()))
def test_every_public_name_has_an_example(module: str, name: str) -> None:
    """In its own docstring, or where it can have none (a table such as SOLVERS) in that of a function beside it."""
    thing = getattr(import_module(module), name)
    own = inspect.isclass(thing) or inspect.isfunction(thing)
    docstrings = [thing.__doc__ or ""] if own else docstrings_beside(name)
    examples = [one for text in docstrings for one in doctest.DocTestParser().get_examples(text)]
    assert any(own or name in example.source for example in examples), f"{module}.{name} has no example"


def docstrings_beside(name: str) -> Iterator[str]:
    """Those of the functions in the file that assigns to the name."""
    for path in SOURCES:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        if any(isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name for node in statements):
            functions = [node for node in statements if isinstance(node, ast.FunctionDef)]
            yield from filter(None, map(ast.get_docstring, functions))


REFERENCE = {"latephase": latephase, "parts": latephase.parts, "curvature": latephase.curvature}


@pytest.mark.parametrize("page", REFERENCE)
def test_the_reference_has_every_public_name(page: str) -> None:
    module = REFERENCE[page]
    text = (ROOT / "docs" / "reference" / f"{page}.md").read_text(encoding="utf-8")
    there = re.findall(r"^::: (.*)$", text, re.MULTILINE)
    public = [f"{module.__name__}.{name}" for name in module.__all__ if not name.startswith("__")]
    assert sorted(there) == sorted(public)


def test_the_first_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(python(ROOT / "docs" / "index.md"))
    exec(compile(code, "index.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "chosen" in printed
    assert printed.count("the step was taken") >= 3


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
GENERATED = ROOT / "docs" / "performance.md"


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED], ids=lambda page: page.name)
def test_lines_of_documentation_fit(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [number for number, line in enumerate(lines, start=1) if len(line) > 120]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_docstrings_are_of_one_dialect(path: Path) -> None:
    """Names and code stand in single backticks: no reStructuredText, whose roles and double ones are for Sphinx."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            assert not re.search(r"``|:[a-z]+:`|\.\. \w+::", text), getattr(node, "name", path.name)
