"""The benchmark of preconditioners: what it counts where the answer is known, and what its table says."""

import sys

import pytest
import torch
from benchmarks import preconditioners
from benchmarks.preconditioners import Point, by_diagonal, column, diagonal, products, sketch

EIGENVALUES = torch.tensor([100.0, 30.0, 10.0, 3.0, 1.0, 0.3], dtype=torch.float64)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> Point:
    """A diagonal matrix, all of whose eigenvalues the gradient sees."""
    monkeypatch.setattr(preconditioners, "SKETCH", len(EIGENVALUES))
    monkeypatch.setattr(preconditioners, "RESIDUAL", 1e-6)
    ones = torch.ones(len(EIGENVALUES), dtype=torch.float64)
    return Point(lambda v: EIGENVALUES * v, ones, torch.zeros_like(ones), float(EIGENVALUES.max()))


def test_one_product_for_each_eigenvalue_without_a_preconditioner(axes: Point) -> None:
    assert products(axes, 1e-3, lambda x: x) == len(EIGENVALUES)


def test_one_product_with_the_inverse(axes: Point, generator: torch.Generator) -> None:
    assert column(axes, by_diagonal(EIGENVALUES)) == [1] * len(preconditioners.SHARES)
    assert column(axes, sketch(axes, generator).at) == [1] * len(preconditioners.SHARES)


def test_the_diagonal_of_a_diagonal_matrix(axes: Point, generator: torch.Generator) -> None:
    torch.testing.assert_close(diagonal(axes, generator), EIGENVALUES, rtol=1e-12, atol=0.0)


def test_it_ends_where_nothing_helps(axes: Point, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preconditioners, "MOST", 4)
    assert products(axes, 1e-3, lambda x: x) == 4


def test_a_table_of_all_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    for name, value in {"PROBES": 2, "SKETCH": 2, "LATER": (1,), "MOST": 3, "SHARES": (0.1,)}.items():
        monkeypatch.setattr(preconditioners, name, value)
    arguments = ["--problem", "digits_cnn", "--epochs", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["preconditioners", *arguments])
    preconditioners.main()
    head, _, row = capsys.readouterr().out.splitlines()
    assert "Adam's second moments v" in head
    assert "kept, step 1 (0)" in head
    assert len(row.split(" | ")) == len(head.split(" | ")) == 9
