"""Which parts a step is made of: those that are given, or those that the paper's flags choose."""

from __future__ import annotations

from typing import TypeVar, cast

from latephase.checks import choice, function
from latephase.parts.auto import Auto
from latephase.parts.cg import CG
from latephase.parts.direct import Direct
from latephase.parts.hybrid import Hybrid
from latephase.parts.krylov import Krylov
from latephase.parts.quasi_newton import QuasiNewton
from latephase.parts.sampled import Sampled
from latephase.parts.solver import Solver

Part = TypeVar("Part")

SOLVERS: dict[str, type[Solver]] = {
    "cg": CG,
    "direct": Direct,
    "hybrid": Hybrid,
    "krylov": Krylov,
    "quasi-newton": QuasiNewton,
    "sampled": Sampled,
    "auto": Auto,
}
"""Solvers by name, each at its default settings."""


def chosen(name: str, part: Part | None, flag: bool, on: Part, off: Part) -> Part:
    """Return `part`, or where that is None what the flag stands for.

    >>> chosen("damping_rule", None, False, on="adapt λ", off="leave it alone")
    'leave it alone'

    Raises:
        TypeError: If the part is given and the flag says that there is none; or if it cannot be called.
    """
    if part is None:
        return on if flag else off
    if not flag:
        raise TypeError(f"{name} is given, and switched off by the flag of its role; do one of the two")
    return cast("Part", _an_object(name, part))


def chosen_solver(solver: Solver | str | None, by_flags: CG) -> Solver:
    """Return the solver that is given, by itself or by its name, or where that is None the one of the flags.

    >>> chosen_solver("cg", by_flags=CG()) == SOLVERS["cg"]()
    True

    Raises:
        TypeError: If it is given and the flags are not at their defaults; or if it cannot be called.
        ValueError: If there is none of this name.
    """
    if solver is None:
        return by_flags
    if by_flags != CG():
        raise TypeError(
            "solver replaces cg_max_iter, cg_decay_x0, martens_conv_crit and nonpos_curv_option; give it or them: "
            "solver=CG(max_iter=100)"
        )
    if isinstance(solver, str):
        return SOLVERS[choice("solver", solver, SOLVERS)]()
    return cast("Solver", _an_object("solver", solver))


def measures_damping(solver: Solver) -> bool:
    """Return whether a solver finds λ itself, by trial losses, as it says in an attribute of this name.

    >>> measures_damping(Direct()), measures_damping(CG())
    (True, False)
    """
    return bool(getattr(solver, "measures_damping", False))


def _an_object(name: str, part: object) -> object:
    if isinstance(part, type):
        raise TypeError(f"{name} must be an object, such as {part.__name__}(), not the class")
    return function(name, part)
