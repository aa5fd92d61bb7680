"""Direct steps and bursts: when there is which, what a burst is beside the peer like it, and what is remembered."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.comparison import property_test
from tests.parts.residuals import Residuals
from torch import nn

from latephase import HessianFree
from latephase.parts import Direct, Hybrid, Path, Sampled
from latephase.parts.direct import OTHER
from latephase.parts.hybrid import FAST, GROWTH, IN_A_ROW, LEARNING, PROBE, Pace, from_two, in_two
from latephase.study.strategies.broyden import Minimiser

EYE = torch.eye(4, dtype=torch.float64)


def residuals(seed: int = 0) -> Residuals:
    """So bent that a direct step lowers the loss a little."""
    return Residuals(M=9, P=4, bent=3.0, seed=seed)


def remembering(problem, **changes):
    pace = Pace(direct=1e-9, burst=math.inf, left=2.0, patience=5.0, price=10.0)
    return replace(problem, memory=pace._replace(**changes).remembered(EYE, problem.b))


def pace_of(path: Path) -> Pace:
    return Pace(*path.memory.numbers.tolist())


def test_where_a_direct_step_is_fast_it_is_all_there_is():
    easy = Residuals(M=4, P=4, bent=0.0)
    path = Hybrid()(easy.problem)
    assert path.losses[1] < easy.problem.loss_0 / FAST
    assert path.memory is None
    assert torch.equal(path.steps[1], Direct()(easy.problem).steps[1])
    assert Hybrid()(remembering(easy.problem, direct=1.0, burst=0.0)).memory is None


def test_where_it_is_slow_gradients_are_next():
    problem = residuals().problem
    path = Hybrid()(problem)
    assert torch.equal(path.steps[1], Direct()(problem).steps[1])
    pace = pace_of(path)
    assert torch.equal(path.memory.metric, EYE)
    assert pace.direct == pytest.approx(math.log(problem.loss_0 / path.losses[1]) / pace.price)
    assert (pace.burst, pace.left, pace.patience) == (math.inf, IN_A_ROW, IN_A_ROW)
    following = Hybrid()(replace(problem, memory=path.memory))
    assert following.method.endswith("gradients of self-scaled Broyden")
    assert pace_of(following).left == IN_A_ROW - 1.0


def test_a_solver_for_a_sample_takes_turns_likewise():
    problem = residuals().problem
    hybrid, alone = Hybrid(Sampled()), Sampled()
    path, (own, price) = hybrid(problem), alone.explore(residuals().problem)
    assert torch.equal(path.steps[1], own.steps[1])
    pace = pace_of(path)
    moves = int(path.method.split()[-4])
    assert pace.price == price == pytest.approx(OTHER + path.matrices + 1.5 * moves)
    assert pace.direct == pytest.approx(math.log(problem.loss_0 / path.losses[1]) / price)
    assert "self-scaled Broyden" in hybrid(replace(problem, memory=path.memory)).method


def test_a_burst_goes_where_the_peer_goes():
    """Beside the strategy of the study, whose searches end alike where the first trial will do."""
    data = residuals()
    path = Hybrid(burst=1.0)(remembering(data.problem))
    peer = Minimiser(lambda p: data.gradient(p), torch.zeros(4, dtype=torch.float64))
    for _ in range(12):
        peer.step()
    lowest, _ = data.gradient(peer.theta)
    assert 10 <= path.last <= 34
    assert path.losses[path.last] == pytest.approx(lowest, rel=0.2)
    assert path.predicted == path.slope == path.losses[path.last] - data.problem.loss_0 < 0.0
    assert path.damping_factor == 1.0


def test_a_burst_learns_and_leaves_what_it_was_given():
    memory = remembering(residuals().problem).memory
    path = Hybrid()(remembering(residuals().problem))
    assert torch.equal(memory.metric, EYE)
    H = path.memory.metric
    torch.testing.assert_close(H, H.T)
    assert float(torch.linalg.eigvalsh(H)[0]) > 0.0
    assert not torch.equal(H, EYE)
    expected = math.log(residuals().problem.loss_0 / path.losses[path.last]) / path.last
    assert pace_of(path).burst == pytest.approx(expected)


@property_test
@given(st.integers(0, 1000), st.floats(-12.0, 12.0))
def test_in_float32_two_numbers_hold_one_of_float64(seed: int, scale: float):
    """Rounded to one, an inverse Hessian whose eigenvalues differ by more than 10⁷ would have negative ones."""
    x = 10.0**scale * torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pair = in_two(x, torch.empty(0))
    assert (pair.dtype, pair.shape) == (torch.float32, (3, 6))
    torch.testing.assert_close(from_two(pair), x, rtol=2.0**-46, atol=1e-30)
    assert in_two(x, x) is x
    assert from_two(x) is x


def test_a_burst_of_a_network_in_float32_learns_in_float64():
    """Eight orders of magnitude between eigenvalues, of which float32 holds seven."""
    wide = torch.tensor([1.0, 1e-8, 1e-3, 1e-6], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    problem = residuals().problem

    def gradient_at(p: torch.Tensor) -> tuple[float, torch.Tensor]:
        loss, g = problem.gradient_at(p.double())
        return loss, g.float()

    narrow = replace(
        problem, b=problem.b.float(), loss_at=lambda p: problem.loss_at(p.double()), gradient_at=gradient_at
    )
    pace = Pace(direct=1e-9, burst=math.inf, left=2.0, patience=5.0, price=10.0)
    path = Hybrid()(replace(narrow, memory=pace.remembered(turn @ wide.diag() @ turn.T, narrow.b)))
    assert path.method.endswith("gradients of self-scaled Broyden")
    assert path.steps[path.last].dtype == path.memory.metric.dtype == torch.float32
    H = from_two(path.memory.metric)
    assert float(torch.linalg.eigvalsh(0.5 * (H + H.T))[0]) > 0.0


def test_a_burst_that_brings_too_little_ends_early():
    """Not while it is new."""
    hard = remembering(residuals().problem, direct=50.0, burst=60.0)
    path = Hybrid(burst=100.0)(hard)
    assert path.last < PROBE + 26
    assert pace_of(path).burst < pace_of(path).direct
    new = remembering(residuals().problem, direct=50.0, burst=60.0, left=IN_A_ROW - LEARNING + 1.0)
    assert Hybrid(burst=100.0)(new).last > path.last


@pytest.mark.parametrize(
    ("changes", "direct"),
    [
        ({"direct": 0.2, "burst": 0.1}, True),
        ({"direct": 0.1, "burst": 0.2}, False),
        ({"direct": 0.2, "burst": 0.1, "left": IN_A_ROW - LEARNING + 1.0}, False),
        ({"direct": 0.1, "burst": 0.2, "left": 0.0}, True),
        ({"direct": 0.1, "burst": 0.2, "left": 1.0}, False),
    ],
)
def test_who_is_next(changes: dict[str, float], direct: bool):
    path = Hybrid()(remembering(residuals().problem, **changes))
    assert path.method.startswith("direct") == direct
    if direct:
        assert pace_of(path).burst == pytest.approx(GROWTH * changes["burst"])


@pytest.mark.parametrize(("burst", "left", "patience"), [(1e9, 20.0, 20.0), (1e-9, IN_A_ROW - LEARNING, IN_A_ROW)])
def test_direct_steps_that_are_tried_in_vain_are_tried_less_often(burst: float, left: float, patience: float):
    pace = pace_of(Hybrid()(remembering(residuals().problem, burst=burst, left=0.0, patience=10.0)))
    assert (pace.left, pace.patience) == (left, patience)


@pytest.mark.parametrize("metric", [EYE[:, :3], EYE[:3, :3]], ids=["vectors", "of other parameters"])
def test_what_another_solver_remembered_is_not_its_own(metric: torch.Tensor):
    problem = residuals().problem
    foreign = replace(problem, memory=pace_of(Hybrid()(problem)).remembered(metric, problem.b))
    assert Hybrid()(foreign).method.startswith("direct")


@pytest.mark.parametrize("why", ["other data", "too many parameters"])
def test_else_it_is_the_direct_solver(why: str):
    problem = remembering(residuals().problem)
    if why == "other data":
        problem, hybrid = replace(problem, loss_model=problem.loss_0 + 1.0), Hybrid()
    else:
        hybrid = Hybrid(largest=3)
    path = hybrid(problem)
    assert path.method == "direct, 4 × 4"
    assert path.memory is None


def test_where_gradients_bring_nothing_a_direct_step_follows():
    data = residuals()
    up = replace(remembering(data.problem), gradient_at=lambda p: (math.inf, torch.zeros_like(p)))
    assert Hybrid()(up).method == "direct, 4 × 4"


# ---------------------------------------------------------------------- in the optimizer


def hard(seed: int = 0, dtype: torch.dtype = torch.float64):
    """A fit from a plateau, where direct steps crawl."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1)).to(dtype)
    x = torch.linspace(-1.0, 1.0, 60, dtype=dtype).unsqueeze(1)
    y = (12.0 * x).sin()
    opt = HessianFree(model.parameters(), solver=Hybrid())

    def forward():
        outputs = model(x)
        return nn.functional.mse_loss(outputs, y), outputs

    return model, opt, forward


def methods(opt, forward, steps):
    kinds = ""
    for _ in range(steps):
        opt.step(forward)
        kinds += "b" if "Broyden" in opt.last_step.solver else "d"
    return kinds


def test_both_kinds_take_their_turns_and_the_loss_only_falls():
    _, opt, forward = hard()
    losses = [forward()[0].item()]
    kinds = ""
    for _ in range(40):
        losses.append(opt.step(forward))
        kinds += "b" if "Broyden" in opt.last_step.solver else "d"
    assert {*kinds} == {"b", "d"}
    assert kinds.startswith("d" + "b" * int(IN_A_ROW) + "d") or "bd" in kinds[: 2 + int(IN_A_ROW)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_resumed_run_goes_on_to_the_bit(dtype: torch.dtype):
    model, opt, forward = hard(dtype=dtype)
    while "metric" not in opt.state[model[0].weight] or not opt.last_step.solver.endswith("Broyden"):
        opt.step(forward)
    again, other, ahead = hard(dtype=dtype)
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert methods(opt, forward, 8) == methods(other, ahead, 8)
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_parameters_that_come_later_end_what_was_remembered():
    model, opt, forward = hard()
    while "metric" not in opt.state[model[0].weight]:
        opt.step(forward)
    opt.add_param_group({"params": [nn.Parameter(torch.zeros(1, dtype=torch.float64))]})
    opt.step(forward)
    assert opt.last_step.solver.startswith("direct")


def test_a_step_that_fails_leaves_what_was_remembered():
    model, opt, forward = hard()
    while "metric" not in opt.state[model[0].weight]:
        opt.step(forward)
    before = opt.state[model[0].weight]["metric"].clone()

    def fails():
        raise KeyError("no data")

    with pytest.raises(KeyError):
        opt.step(fails)
    assert torch.equal(opt.state[model[0].weight]["metric"], before)


@pytest.mark.parametrize(("option", "value"), [("largest", 0), ("largest", 1.5), ("burst", 0.0), ("burst", math.nan)])
def test_what_it_refuses(option: str, value: Any):
    with pytest.raises((TypeError, ValueError), match=option):
        Hybrid(**{option: value})
