"""The benchmark of rows of outer products: both ways agree, or nothing is printed."""

import sys

import pytest
from benchmarks import outer_rows

from latephase.curvature import jacobian
from latephase.curvature.rewrite import outer_products


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jacobian, "LARGE", jacobian.LARGE)
    monkeypatch.setattr(outer_products, "WORTH", outer_products.WORTH)
    monkeypatch.setattr(sys, "argv", ["outer_rows", "--problems", "poisson_2d_257", "--rounds", "1"])


def test_a_row_for_each_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert outer_rows.main() == 0
    assert "| poisson_2d_257 | 257 | 1,020 | " in capsys.readouterr().out


def test_nothing_is_timed_where_they_disagree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outer_rows, "AGREED", -1.0)
    assert outer_rows.main() == 1
    assert "do not agree" in capsys.readouterr().err
