"""A dense quasi-Newton method of Broyden's family, self-scaled, with a line search for the strong Wolfe conditions.

Update and conditions are those of Urbán, Stefanou and Pons 2024 (arXiv 2405.04230).
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from latephase.parts.broyden import update

DECREASE, SLOPE = 1e-4, 0.9  # of the Wolfe conditions (Urbán et al. 2024)


class Sample(NamedTuple):
    """A point θ, [P] in float64, with the objective's value and gradient there."""

    theta: Tensor
    value: float
    gradient: Tensor


Objective: TypeAlias = Callable[[Tensor], tuple[float, Tensor]]
"""Maps θ, [P], to value and gradient."""


class Minimiser:
    """A quasi-Newton method with a dense approximation H of the inverse Hessian, at first the identity.

    Args:
        objective: What to minimise.
        theta: Where to start, [P] in float64.

    Attributes:
        theta: The iterate.
        H: The approximation, [P, P].
    """

    def __init__(self, objective: Objective, theta: Tensor) -> None:
        self._objective, self.theta = objective, theta
        self._here: Sample | None = None
        self._before: float | None = None  # the value one iterate ago
        self.H = torch.eye(len(theta)).to(theta)

    def step(self) -> None:
        """Take a step, or go back to H = I where the line search finds none."""
        here = self._here or self._sample(self.theta)
        p = -(self.H @ here.gradient)
        # Without a step before it the first trial is to have about the length 1, as in `scipy.optimize.minimize`.
        before = here.value + float(here.gradient.norm()) / 2 if self._before is None else self._before
        found = search(self._sample, here, p, before)
        if found is None:
            self._here, self._before, self.H = here, None, torch.eye(len(p)).to(p)
            return
        s = found.theta - here.theta
        alpha = float(s.norm() / p.norm())
        update(self.H, s, found.gradient - here.gradient, -alpha * float(s @ here.gradient))
        self.theta, self._here, self._before = found.theta, found, here.value

    def _sample(self, theta: Tensor) -> Sample:
        value, gradient = self._objective(theta)
        return Sample(theta, value, gradient.to(theta))


def search(sample: Callable[[Tensor], Sample], here: Sample, p: Tensor, before: float) -> Sample | None:
    """Return a point along `p` at which the strong Wolfe conditions hold, or None if none is found.

    Args:
        sample: Evaluates the objective.
        here: Where to start.
        p: The direction, [P].
        before: The value one iterate ago, from which the length of the first trial is guessed.
    """
    from scipy.optimize import line_search  # here, because it takes a while, which other strategies need not wait

    last = here

    def at(x: NDArray[Any]) -> Sample:
        nonlocal last
        theta = torch.from_numpy(x).to(p)
        if not torch.equal(theta, last.theta):  # the search asks for value and gradient one by one
            last = sample(theta)
        return last

    x, direction, slope = (v.cpu().numpy() for v in (here.theta, p, here.gradient))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is none
        alpha = line_search(
            lambda x: at(x).value, lambda x: at(x).gradient.cpu().numpy(), x, direction, slope, here.value, before,
            c1=DECREASE, c2=SLOPE,
        )[0]  # fmt: skip
    return None if alpha is None else at(x + alpha * direction)
