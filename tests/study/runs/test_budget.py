import pytest

from latephase.study.runs.budget import Budget


@pytest.mark.parametrize(
    ("text", "written", "allowance"),
    [
        ("10%", "10%", (20.0, "seconds")),
        (" 2.5 s ", "2.5s", (2.5, "seconds")),
        ("200gradients", "200gradients", (200.0, "gradients")),
        ("1e-3s", "0.001s", (0.001, "seconds")),
    ],
)
def test_a_budget_is_a_share_or_seconds_or_work(text, written, allowance):
    budget = Budget.parse(text)
    assert str(budget) == written
    amount, unit = budget.allowance(training_seconds=200.0)
    assert (pytest.approx(amount), unit) == allowance
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["", "10", "ten%", "-3s", "0s", "1.2.3s", "5 epochs", "10%s"])
def test_anything_else_is_refused_with_examples(text):
    with pytest.raises(ValueError, match="such as 10%, 30s or 200gradients, not "):
        Budget.parse(text)
