import contextlib
import subprocess
import sys
import threading

import pytest
import torch

from latephase.study.runs.clock import Clock, to_itself


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


def test_a_device_is_one_timed_runs_at_a_time():
    script = f"""
import torch
from {to_itself.__module__} import to_itself
with to_itself(torch.device("cuda:7")):
    print("mine", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "mine\n"
        with to_itself(torch.device("cuda:6")):
            pass  # another device
        order = []
        threading.Timer(0.3, lambda: (order.append("theirs"), other.kill())).start()
        with to_itself(torch.device("cuda:7")):
            order.append("ours")
        assert order == ["theirs", "ours"]
