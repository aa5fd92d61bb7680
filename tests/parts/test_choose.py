"""Parts that are given, by themselves or by name, or that the flags stand for."""

from __future__ import annotations

import pytest

from latephase.parts import CG, SOLVERS, Armijo, FullStep, LineSearch, chosen, chosen_solver


@pytest.mark.parametrize(("flag", "expected"), [(True, Armijo()), (False, FullStep())])
def test_the_flag_decides_where_no_part_is_given(flag: bool, expected: LineSearch) -> None:
    assert chosen("line_search", None, flag, Armijo(), FullStep()) == expected


def test_a_part_that_is_given_is_taken() -> None:
    mine = Armijo(c=0.5)
    assert chosen("line_search", mine, True, Armijo(), FullStep()) is mine
    with pytest.raises(TypeError, match="line_search is given, and switched off"):
        chosen("line_search", mine, False, Armijo(), FullStep())


def test_a_class_is_no_part() -> None:
    with pytest.raises(TypeError, match=r"such as Armijo\(\), not the class"):
        chosen("line_search", Armijo, True, Armijo(), FullStep())


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_by_name_have_their_defaults(name: str) -> None:
    assert chosen_solver(name, CG()) == SOLVERS[name]()


def test_a_solver_replaces_the_flags_and_not_some_of_them() -> None:
    assert chosen_solver(None, CG(max_iter=3)) == CG(max_iter=3)
    with pytest.raises(TypeError, match="solver replaces cg_max_iter"):
        chosen_solver("cg", CG(max_iter=3))
    with pytest.raises(ValueError, match=r"solver must be one of 'cg'.*not 'newton'"):
        chosen_solver("newton", CG())
