"""A walk by gradients beside one whose inverse Hessian is a plain matrix."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.parts.residuals import Residuals

from latephase.parts.broyden import Dense, Inverse, LowRank, update
from latephase.parts.walk import Walk
from latephase.parts.wolfe import Place, first_step, weak_wolfe

EYE = torch.eye(5, dtype=torch.float64)
INVERSES = {"dense": lambda: Dense(EYE), "low rank": lambda: LowRank(EYE[:, :0], EYE[:0, :0], 1.0, updates=9)}


@pytest.mark.parametrize("inverse", [make() for make in INVERSES.values()], ids=list(INVERSES))
def test_it_goes_where_the_definition_goes(inverse: Inverse) -> None:
    data = Residuals(M=9, P=5, bent=0.3)
    at = lambda p: Place(p, *data.gradient(p))  # noqa: E731
    walk = Walk(at(torch.zeros(5, dtype=torch.float64)), inverse)
    here, H, before, gradients = walk.here, EYE.clone(), None, 0
    for _ in range(9):
        d = -H @ here.g
        found = weak_wolfe(here, d, at, first_step(here, d, before))
        s, y = found.place.p - here.p, found.place.g - here.g
        update(H, s, y, float(s @ torch.linalg.solve(H, s)))
        here, before, gradients = found.place, here.loss, gradients + found.gradients
        assert walk.advance(at)
        torch.testing.assert_close(walk.here.p, here.p, rtol=1e-5, atol=1e-9)
        assert walk.before == pytest.approx(before, rel=1e-5)
    assert walk.gradients == gradients
    assert walk.rate == pytest.approx(math.log(data.problem.loss_0 / here.loss) / gradients, rel=1e-5)


def test_what_was_before_says_how_far_to_go_first() -> None:
    data = Residuals(M=9, P=5)
    start = Place(torch.zeros(5, dtype=torch.float64), *data.gradient(torch.zeros(5, dtype=torch.float64)))
    firsts = []
    for before in None, start.loss + 1e-9:
        asked: list[torch.Tensor] = []
        walk = Walk(start, Dense(EYE), before)
        walk.advance(lambda p: asked.append(p) or Place(p, *data.gradient(p)))  # noqa: B023
        firsts.append(float(asked[0].norm()))
    assert firsts[1] < 1e-3 * firsts[0]


def test_where_nothing_is_lower_it_stays() -> None:
    data = Residuals(M=9, P=5)
    walk = Walk(Place(torch.zeros(5, dtype=torch.float64), *data.gradient(torch.zeros(5).double())), Dense(EYE))
    assert not walk.advance(lambda p: Place(p, math.inf, p))
    assert not bool(walk.here.p.any())


def test_its_way_is_a_step_to_take() -> None:
    data = Residuals(M=9, P=5)
    problem = replace(data.problem, loss_at=lambda p: 1.0 + data.loss(p))
    walk = Walk(Place(torch.zeros(5, dtype=torch.float64), *data.gradient(torch.zeros(5).double())), Dense(EYE))
    walk.advance(lambda p: Place(p, *data.gradient(p)))
    path = walk.path(problem)
    assert path.steps == {walk.gradients: walk.here.p}
    assert path.losses == {walk.gradients: pytest.approx(1.0 + walk.here.loss)}
    assert path.predicted == path.slope == path.losses[path.last] - problem.loss_0
    assert path.damping_factor == 1.0
