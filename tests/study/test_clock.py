import contextlib

import pytest
import torch

from latephase.study.clock import Clock


class Time:
    """A time that passes only when told to."""

    def __init__(self):
        self.value = 100.0

    def __call__(self):
        return self.value

    def pass_by(self, seconds):
        self.value += seconds


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def clock(time):
    return Clock(torch.device("cpu"), now=time)


def test_only_time_inside_counts(clock, time):
    time.pass_by(5)
    with clock:
        time.pass_by(2)
    time.pass_by(7)
    with clock:
        time.pass_by(1)
    time.pass_by(9)
    assert clock.seconds == 3


def test_a_running_clock_can_be_read(clock, time):
    with clock:
        time.pass_by(2)
        assert clock.seconds == 2
        time.pass_by(1)
        assert clock.seconds == 3


def test_an_exception_stops_the_clock(clock, time):
    with contextlib.suppress(ZeroDivisionError), clock:
        time.pass_by(2)
        raise ZeroDivisionError
    time.pass_by(5)
    assert clock.seconds == 2


def test_a_clock_cannot_be_started_twice(clock, time):
    with clock:
        with pytest.raises(RuntimeError, match="already running"), clock:
            pass
        time.pass_by(4)
    assert clock.seconds == 4


def test_work_queued_before_is_not_charged_and_work_still_running_is(time, monkeypatch):
    queued = [20]

    def synchronize(device):
        assert device.type == "cuda"
        time.pass_by(queued.pop() if queued else 0)

    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    clock = Clock(torch.device("cuda"), now=time)
    with clock:
        queued.append(3)
    assert clock.seconds == 3
