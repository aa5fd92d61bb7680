import pytest
from tests.study.toy import REFERENCE, silent

from latephase.study.runs.budget import Budget
from latephase.study.runs.experiments import Place, perform
from latephase.study.runs.plan import plan_runs, plan_training
from latephase.study.runs.store import Store


@pytest.mark.parametrize(
    ("wanted", "checkpoints"),
    [("last", [3]), ("all", [1, 2, 3]), ("2", [2]), ("1,3", [1, 3]), ("3, 1, 3", [1, 3])],
)
def test_runs_are_planned_from_the_checkpoints_that_are_named(tmp_path, wanted, checkpoints):
    training = plan_training(REFERENCE, epochs=3, seed=0, device="cpu")
    assert perform(Place(str(tmp_path)), training, silent) == "complete"
    runs = plan_runs(
        Store(tmp_path), training, checkpoint=wanted, strategies="sgd_tenth,hf_m12", seeds=2,
        budget=Budget.parse("10gradients"),
    )  # fmt: skip
    assert [run.checkpoint for run in runs] == [number for number in checkpoints for _ in range(4)]
    assert len({run.identity for run in runs}) == len(runs)
