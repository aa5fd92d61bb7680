"""The detector on SGD that goes on, and on SGD that goes around; its state, its words, and what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from latephase import StallDetector

TESTS = [("loss",), ("stationarity",), ("pflug",), ("loss", "stationarity")]


class Walk:
    """SGD on ½(x − ξ)² with noise ξ: from far away it falls, near the minimum it goes around."""

    def __init__(self, *, far=0.0, rate=0.05, noise=1.0, seed=0):
        self.random = torch.Generator().manual_seed(seed)
        self.x = torch.nn.Parameter(torch.full((4,), far, dtype=torch.float64))
        self.opt = torch.optim.SGD([self.x], lr=rate)
        self.noise = noise

    def step(self):
        xi = self.noise * torch.randn(4, generator=self.random, dtype=torch.float64)
        loss = 0.5 * (self.x - xi).square().sum()
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return loss.item()


def first_alarm(detector, walk, most=20_000):
    return next((n for n in range(1, most + 1) if detector.update(walk.step(), walk.opt)), None)


@pytest.mark.parametrize("tests", TESTS, ids="+".join)
def test_who_goes_around_is_found(tests):
    alarm = first_alarm(StallDetector(tests, min_steps=200), Walk())
    assert alarm is not None
    assert alarm >= 200


@pytest.mark.parametrize("tests", TESTS, ids="+".join)
def test_who_falls_is_not(tests):
    """At so small a rate the start is still 100 times as far from the minimum as noise moves it."""
    walk = Walk(far=100.0, rate=1e-4)
    assert first_alarm(StallDetector(tests, min_steps=200), walk, most=5000) is None
    assert walk.x.min() > 50.0


def test_the_reason_says_what_was_measured():
    detector = StallDetector(min_steps=200)
    assert detector.reason == "there has been no step yet"
    walk = Walk()
    detector.update(walk.step())
    assert detector.reason == "no verdict before 200 steps with finite losses, of which there have been few"
    first_alarm(detector, walk)
    assert detector.reason.startswith("the loss has not fallen for ")
    assert "standard error" in detector.reason


def test_it_stays_stalled_until_it_is_reset():
    detector, walk = StallDetector((), steps=3), Walk()
    assert [detector.update(walk.step()) for _ in range(5)] == [False, False, True, True, True]
    assert detector.reason == "there have been 3 steps, steps=3"
    detector.reset()
    assert not detector.stalled
    assert [detector.update(walk.step()) for _ in range(3)] == [False, False, True]


def test_a_predicate_decides():
    seen = []

    def predicate(step, loss):
        seen.append((step, loss))
        return loss < 2.0

    detector = StallDetector((), predicate=predicate)
    assert [detector.update(loss) for loss in (4.0, 3.0, 1.0)] == [False, False, True]
    assert seen == [(1, 4.0), (2, 3.0), (3, 1.0)]
    assert detector.reason == "the predicate was true at step 3"


@pytest.mark.parametrize("option", [{"window": 0.2}, {"margin": 3.0}, {"min_steps": 400}])
def test_each_setting_of_the_trend_matters(option):
    plain = first_alarm(StallDetector(min_steps=200, margin=-1.0), Walk(seed=3))
    assert first_alarm(StallDetector(**{"min_steps": 200, "margin": -1.0, **option}), Walk(seed=3)) != plain


def test_a_larger_tolerance_finds_stationarity_sooner():
    alarms = [
        first_alarm(StallDetector(("stationarity",), min_steps=200, tolerance=tolerance), Walk(rate=0.01))
        for tolerance in (0.5, 0.02)
    ]
    assert alarms[0] < alarms[1]


def test_several_tests_must_agree():
    alone = [first_alarm(StallDetector((test,), min_steps=200), Walk(seed=1)) for test in ("loss", "stationarity")]
    assert first_alarm(StallDetector(("loss", "stationarity"), min_steps=200), Walk(seed=1)) >= max(alone)


def test_what_is_not_finite_is_left_out():
    detector, same = StallDetector(min_steps=50), StallDetector(min_steps=50)
    walk, twin = Walk(), Walk()
    for n in range(300):
        if n % 7 == 0:
            detector.update(math.nan)
        assert detector.update(walk.step()) == same.update(twin.step())
    assert detector.reason.endswith("43 steps were left out, as the loss or the update was not finite")


def test_a_new_rate_begins_anew():
    detector, walk = StallDetector(("stationarity",), min_steps=100), Walk()
    for _ in range(99):
        detector.update(walk.step(), walk.opt)
    walk.opt.param_groups[0]["lr"] = 0.01
    detector.update(walk.step(), walk.opt)
    assert detector.reason == "no verdict before 100 steps with finite losses, of which there have been few"
    assert first_alarm(detector, walk) >= 99


@pytest.mark.parametrize("at", [0, 1, 150, 700])
@pytest.mark.parametrize("tests", TESTS, ids="+".join)
def test_resumed_to_the_bit(tests, at, tmp_path):
    through, walk = StallDetector(tests, min_steps=100), Walk()
    broken, twin = StallDetector(tests, min_steps=100), Walk()
    for n in range(1200):
        if n == at:
            torch.save(broken.state_dict(), tmp_path / "detector.pt")
            broken = StallDetector(tests, min_steps=100)
            broken.load_state_dict(torch.load(tmp_path / "detector.pt", weights_only=True))
        assert through.update(walk.step(), walk.opt) == broken.update(twin.step(), twin.opt)
        assert through.reason == broken.reason


def test_a_saved_state_stays_as_it_is():
    detector, walk = StallDetector(("loss", "stationarity", "pflug"), min_steps=10), Walk()
    for _ in range(30):
        detector.update(walk.step(), walk.opt)
    state = detector.state_dict()
    before = copy.deepcopy(state)
    for _ in range(300):
        detector.update(walk.step(), walk.opt)
    again = StallDetector(("loss", "stationarity", "pflug"), min_steps=10)
    again.load_state_dict(before)
    other = StallDetector(("loss", "stationarity", "pflug"), min_steps=10)
    other.load_state_dict(state)
    assert again.reason == other.reason
    assert all(torch.equal(again.state_dict()["reading"][k], other.state_dict()["reading"][k]) for k in ("x", "g"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tests": "loss"}, TypeError, "several names"),
        ({"tests": ("luck",)}, ValueError, "tests"),
        ({"tests": ("loss", "loss")}, ValueError, "differ"),
        ({"tests": ()}, ValueError, "nothing to decide by"),
        ({"steps": 0}, ValueError, "steps"),
        ({"predicate": 3}, TypeError, "predicate"),
        ({"min_steps": 0}, ValueError, "min_steps"),
        ({"window": 0.0}, ValueError, "window"),
        ({"window": 1.5}, ValueError, "window"),
        ({"tolerance": -1.0}, ValueError, "tolerance"),
        ({"margin": math.nan}, ValueError, "margin"),
    ],
)
def test_bad_settings_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        StallDetector(**options)


@pytest.mark.parametrize("loss", ["1", None, True, torch.ones(2), torch.tensor(1j)])
def test_bad_losses_are_refused(loss):
    with pytest.raises(TypeError, match="loss must be"):
        StallDetector().update(loss)


def test_what_a_test_reads_must_be_there():
    walk = Walk()
    with pytest.raises(TypeError, match="reads the optimizer"):
        StallDetector(("stationarity",)).update(1.0)
    with pytest.raises(ValueError, match="reads gradients"):
        StallDetector(("pflug",)).update(1.0, walk.opt)


def test_states_of_something_else_are_refused():
    with pytest.raises(ValueError, match="has the entries"):
        StallDetector().load_state_dict({})
    with pytest.raises(ValueError, match=r"the state is of tests=\('pflug',\)"):
        StallDetector().load_state_dict(StallDetector(("pflug",)).state_dict())
