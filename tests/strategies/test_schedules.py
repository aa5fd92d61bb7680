import pytest
import torch

from latephase.strategies.schedules import PATIENCE, PERIODS, constant, cosine, plateau, tenth


def test_constant_and_tenth_do_not_move():
    for share in (0.0, 0.4, 1.0):
        assert constant()(share, torch.tensor(1.0)) == 1.0
        assert tenth()(share, torch.tensor(1.0)) == 0.1


def test_cosine_is_the_schedule_of_that_name():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    factor = cosine()
    for step in range(51):
        assert factor(step / 50, None) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        schedule.step()


def factors(loss_at, steps=200):
    factor = plateau()
    return [factor(n / steps, None if n == 0 else torch.tensor(loss_at(n))) for n in range(steps)]


def test_plateau_reduces_three_times_at_most_and_only_without_progress():
    stalled = factors(lambda n: 1.0)
    assert sorted({round(f, 9) for f in stalled}) == [0.001, 0.01, 0.1, 1.0]
    # The first period sets the mark, and the next ones do not better it.
    assert stalled.index(pytest.approx(0.1)) == (1 + PATIENCE + 1) * 200 // PERIODS
    assert set(factors(lambda n: 1.0 / n)) == {1.0}


def test_plateau_looks_at_the_mean_of_a_period_and_not_at_single_losses():
    falling = factors(lambda n: 100.0 - n // 10 + 50.0 * (-1) ** n)
    assert set(falling) == {1.0}
