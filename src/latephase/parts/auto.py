"""The solver for whoever does not want to choose: direct where that pays, else by a Krylov space."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from latephase.parts.direct import Direct
from latephase.parts.krylov import Krylov
from latephase.parts.solver import DampedProblem, NoSolutionError, Path


@dataclass(frozen=True)
class Auto:
    """Factorise where that costs no more than a Krylov space does, and is possible; else take the Krylov space.

    What a factorisation costs follows from sizes alone, so that a resumed run chooses alike.

    Attributes:
        direct: The solver by factorisation, and how many gradients that may cost.
        krylov: The other.
    """

    direct: Direct = field(default_factory=lambda: Direct(gradients=200.0))
    krylov: Krylov = field(default_factory=Krylov)

    def __call__(self, problem: DampedProblem) -> Path:
        """See `Solver`."""
        try:
            return self.direct(problem)
        except NoSolutionError as error:
            path = self.krylov(problem)
            return replace(path, method=f"{path.method}, as {error}")
