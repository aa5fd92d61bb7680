import pytest
import torch
from tests.finishing.tasks import examples, network
from torch.nn.functional import cross_entropy

from latephase.distributed import Alone
from latephase.finishing.setting import WITHOUT, on_closures, on_examples


def setting(held_out=None, batch_size=10, count=120):
    return on_examples(network(), cross_entropy, examples(count), held_out, None, batch_size, None, Alone())


def test_held_out_examples_judge():
    held_out = examples(30)
    there = setting(held_out)
    assert (there.judge.name, there.judge.with_l2, there.remarks) == ("held-out loss", False, ())
    assert torch.equal(there.judge.examples.inputs, held_out[0])
    assert len(there.data.train) == 120


def test_without_them_the_objective_does():
    there = setting()
    assert (there.judge.name, there.judge.with_l2, there.remarks) == ("objective", True, (WITHOUT,))
    assert len(there.judge.examples) == 120


def test_a_batch_is_no_larger_than_the_data():
    assert setting(batch_size=10).task.batch_size == 10
    assert setting(batch_size=10, count=4).task.batch_size == 4


def test_a_closure_judges_itself_unless_another_does():
    x, y = examples(20)
    model = network()

    def closure():
        return cross_entropy(model(x), y)

    def held_out():
        return 2.0 * cross_entropy(model(x), y)

    alone = on_closures(model, closure, None, None, None)
    other = on_closures(model, closure, held_out, None, None)
    assert (alone.judge.name, alone.judge.with_l2) == ("objective", True)
    assert (other.judge.name, other.judge.with_l2) == ("held-out loss", False)
    assert other.judge(model) == pytest.approx(2.0 * alone.judge(model), rel=1e-12)
    assert alone.remarks == ()
