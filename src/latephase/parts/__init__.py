"""The replaceable parts of Algorithm 1. They see vectors, callables and numbers, never modules or autograd.

A part is an object that keeps to the protocol of its role: `Solver`, `DampingRule`, `StepChoice` or `LineSearch`.
"""

from latephase.outer_rows import OuterRows
from latephase.parts.auto import Auto
from latephase.parts.backtracking import Backtracking, LastIterate, StepChoice
from latephase.parts.cg import CG
from latephase.parts.choose import SOLVERS, chosen, chosen_solver
from latephase.parts.damping import ConstantDamping, DampingRule, LevenbergMarquardt
from latephase.parts.direct import Direct
from latephase.parts.hybrid import Hybrid
from latephase.parts.krylov import Krylov
from latephase.parts.linesearch import Armijo, FullStep, LineSearch, LineSearchResult
from latephase.parts.quasi_newton import QuasiNewton
from latephase.parts.sampled import Sampled
from latephase.parts.solver import Curvature, DampedProblem, Factor, Memory, NoSolutionError, Path, Solver

__all__ = [
    "CG",
    "SOLVERS",
    "Armijo",
    "Auto",
    "Backtracking",
    "ConstantDamping",
    "Curvature",
    "DampedProblem",
    "DampingRule",
    "Direct",
    "Factor",
    "FullStep",
    "Hybrid",
    "Krylov",
    "LastIterate",
    "LevenbergMarquardt",
    "LineSearch",
    "LineSearchResult",
    "Memory",
    "NoSolutionError",
    "OuterRows",
    "Path",
    "QuasiNewton",
    "Sampled",
    "Solver",
    "StepChoice",
    "chosen",
    "chosen_solver",
]
