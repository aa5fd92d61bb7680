"""Every page of the documentation: each block of Python is run by some test, each command is one that there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from torch import nn
from torch.nn.functional import mse_loss
from typer.core import TyperGroup
from typer.testing import CliRunner

import latephase
from latephase import HessianFree
from latephase.cli import app
from latephase.parts import LevenbergMarquardt
from latephase.strategies.options import split_list
from latephase.study.problems import find_problem
from latephase.study.runs.budget import Budget
from latephase.study.strategies.catalogue import parse_strategies
from tests.pages import DOCS, PAGES, ROOT, python
from tests.study.toy import REFERENCE

# How many blocks of Python a page has, and which test runs them. A new block wants a test, and its number here.
BLOCKS = {
    "README.md": (3, "test_readme.py"),
    "docs/algorithm.md": (2, "test_pages.py"),
    "docs/curvature.md": (1, "test_pages.py"),
    "docs/finish.md": (3, "test_readme.py"),
    "docs/frameworks.md": (4, "integrations/test_docs.py"),
    "docs/index.md": (2, "test_documentation.py"),
    "docs/scale.md": (2, "test_distributed.py"),
    "docs/stall.md": (1, "test_readme.py"),
    "docs/study.md": (3, "test_readme.py"),
    "docs/switching.md": (1, "test_readme.py"),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_block_of_python_is_one_that_a_test_runs(page: Path) -> None:
    name = page.relative_to(ROOT).as_posix()
    number, by = BLOCKS.get(name, (0, ""))
    assert len(python(page)) == number
    if number:
        test = (ROOT / "tests" / by).read_text(encoding="utf-8")
        assert page.name in test or page.stem.upper() in test


def test_the_parts_of_a_step_are_as_the_page_gives_them() -> None:
    code, _ = python(DOCS / "algorithm.md")
    kept: list[HessianFree] = []

    def made(*args: object, **options: object) -> HessianFree:
        kept.append(HessianFree(*args, **options))  # type: ignore[arg-type]
        return kept[-1]

    theta = nn.Parameter(torch.tensor([3.0]))
    exec(compile(code, "algorithm.md", "exec"), {"HessianFree": made, "params": [theta]})
    (opt,) = kept
    before = float(theta.detach().square())
    assert opt.step(lambda: (theta.square().sum(), theta)) < before
    assert opt.damping_rule == LevenbergMarquardt(decrease=0.5)


def test_kfac_lowers_the_loss_as_the_page_uses_it() -> None:
    _, code = python(DOCS / "algorithm.md")
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(40, 3)
    targets = inputs.sum(dim=1, keepdim=True).sin()
    before = float(mse_loss(model(inputs), targets).detach())
    names = {"torch": torch, "latephase": latephase, "mse_loss": mse_loss}
    exec(compile(code, "algorithm.md", "exec"), {**names, "model": model, "inputs": inputs, "targets": targets})
    assert float(mse_loss(model(inputs), targets).detach()) < 0.9 * before


def test_curvature_products_are_as_the_page_gives_them(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = python(DOCS / "curvature.md")
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.randn(5, 3), torch.randn(5, 2)

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        outputs = model(x)
        return nn.functional.mse_loss(outputs, y), outputs

    names = {"forward": forward, "model": model, "v": torch.randn(8)}
    exec(compile(code, "curvature.md", "exec"), names)
    torch.testing.assert_close(names["Cv"], names["hessian"](forward, model.parameters()) @ names["v"])
    assert capsys.readouterr().out.startswith("products by ")


def test_a_folder_of_runs_is_read_as_the_page_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, code = python(DOCS / "study.md")
    arguments = ["study", REFERENCE, "--out", str(tmp_path / "runs"), "--epochs", "2", "--seeds", "1"]
    arguments += ["--checkpoint", "last", "--strategies", "sgd_cosine", "--budget", "9gradients"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "study.md", "exec"), names)
    assert isinstance(names["network"], dict)


# ---------------------------------------------------------------------- commands


WITH_COMMANDS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
STARTS = r"torchrun [^`\n]*?-m |python -m "


def commands() -> Iterator[tuple[str, str]]:
    """The page and the text of each command, in blocks and in lines of text, without what starts it."""
    for page in WITH_COMMANDS:
        text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            if not language:
                whole = block.replace("\\\n", " ")
                found = re.findall(rf'^(?:\$ |{STARTS})?(latephase (?:"[^"]*"|[^\n"])*)', whole, re.MULTILINE)
                yield from ((name, one) for one in found)
        found = re.findall(rf"`(?:{STARTS})?(latephase [a-z]+(?: [^`]*)?)`", text.replace("\n", " "))
        yield from ((name, one) for one in found)


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_a_command_is_one_that_there_is(page: str, command: str) -> None:
    """Its options are read, and its problem, strategies and budget are looked up; it is not carried out."""
    _, *words = shlex.split(command, comments=True)
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    name, found, rest = group.resolve_command(group.make_context("latephase", ["--"], resilient_parsing=True), words)
    assert found is not None, name
    if not rest or "…" in rest:
        return  # the text speaks of the command, and does not give it
    options = found.make_context(str(name), rest, resilient_parsing=False).params
    problem = options.get("problem")
    if problem is None or ":" in problem or problem == "PROBLEM":
        return
    there = find_problem(problem)
    named = [part for part in split_list(options.get("strategies") or "") if ".py:" not in part]
    assert len(parse_strategies(",".join(named), there, 50_000) if named else []) == len(named)
    if options.get("budget"):
        Budget.parse(options["budget"])


BENCHMARKS = {one for page in WITH_COMMANDS for one in re.findall(r"-m benchmarks\.(\w+)", page.read_text("utf-8"))}


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_benchmark_is_one_that_there_is(name: str) -> None:
    assert (ROOT / "benchmarks" / f"{name}.py").exists()
