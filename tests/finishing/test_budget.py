import math
import time

import pytest

from latephase.finishing.budget import Budget, Meter


@pytest.mark.parametrize(
    ("given", "amount", "unit"),
    [
        (30, 30.0, "seconds"),
        (0.5, 0.5, "seconds"),
        ("90s", 90.0, "seconds"),
        (" 1.5 min ", 90.0, "seconds"),
        ("2H", 7200.0, "seconds"),
        ("1e3s", 1000.0, "seconds"),
        ("300gradients", 300.0, "gradients"),
        ("300 Gradients", 300.0, "gradients"),
    ],
)
def test_what_people_write(given, amount, unit):
    assert Budget.parse(given) == (amount, unit)


@pytest.mark.parametrize("given", ["", "soon", "10", "-5s", "5 days", "nan", "0s", 0, -1.0, math.nan, math.inf])
def test_what_is_no_budget_is_refused_with_what_is(given):
    with pytest.raises(ValueError, match=r'a positive number of seconds or a text such as "90s".*300gradients'):
        Budget.parse(given)


@pytest.mark.parametrize("given", [None, True, [3], 1j])
def test_other_types_are_refused(given):
    with pytest.raises(TypeError, match="budget must be seconds"):
        Budget.parse(given)


@pytest.mark.parametrize(
    ("given", "text"), [(30, "30 s"), ("90s", "90 s"), ("10min", "10 min"), ("300gradients", "300 gradients")]
)
def test_its_text_is_short(given, text):
    assert str(Budget.parse(given)) == text


def test_gradients_are_counted():
    meter = Meter(Budget.parse("200gradients"), gradients=50.0)
    assert meter.share == 0.25
    meter.gradients += 100.0
    assert meter.share == 0.75


def test_seconds_run_and_those_of_an_earlier_process_count(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 100.0)
    meter = Meter(Budget.parse("20s"), seconds=5.0)
    monkeypatch.setattr(time, "perf_counter", lambda: 103.0)
    assert meter.seconds == 8.0
    assert meter.share == 0.4
