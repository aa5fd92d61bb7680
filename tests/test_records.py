"""What a step's record says to people."""

from dataclasses import replace

import pytest

from latephase import CGStop, Counts, Outcome, StepRecord

RECORD = StepRecord(
    Outcome.ACCEPTED,
    loss_model=2.0,
    loss_before=3.0,
    loss_after=1.5,
    damping=1.0,
    next_damping=0.5,
    reduction_ratio=0.9,
    solver="direct, 2 × 2",
    cg_iterations=4,
    cg_stop=CGStop.SOLVED,
    cg_iterate=3,
    counts=Counts(losses=5, gradients=1, products=4),
)


def test_a_record_in_words() -> None:
    text = str(RECORD)
    for part in ("loss 3 -> 1.5 (model batch 2): the step was taken", "damping 1 -> 0.5 (reduction ratio 0.9)"):
        assert part in text
    assert "direct, 2 × 2: 4 iterations, iterate 3 chosen; the linear system is solved to rounding" in text
    assert "1 gradients, 4 curvature products, 5 losses" in text


def test_a_record_for_loggers_is_flat_and_plain() -> None:
    entries = RECORD.as_dict("train/")
    assert all(name.startswith("train/") for name in entries)
    assert all(type(value) in (int, float, str, bool) for value in entries.values())
    plain = RECORD.as_dict()
    assert {"train/" + name: value for name, value in plain.items()} == entries
    assert (plain["outcome"], plain["cg_stop"], plain["products"], plain["loss_after"]) == (
        "ACCEPTED",
        "SOLVED",
        4,
        1.5,
    )
    assert "reduction_ratio" not in replace(RECORD, reduction_ratio=None).as_dict()


def test_what_there_was_not_is_left_out() -> None:
    text = str(replace(RECORD, loss_model=None, reduction_ratio=None, cg_stop=None, solver=""))
    assert "model batch" not in text
    assert "reduction ratio -" in text
    assert "no solver: 4 iterations" in text
    assert "ended early" in text


@pytest.mark.parametrize("outcome", Outcome)
def test_undone_is_what_says_that_nothing_was_changed(outcome: Outcome) -> None:
    assert outcome.undone == (outcome.value.endswith(("nothing was changed", "nothing to do")))
