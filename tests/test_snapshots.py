"""What modules and the optimizer hold is put back: values, places and flags."""

import random

import torch
from torch import nn

from latephase.snapshots import Attributes, Buffer, OptimizerState


class Noted(nn.Module):
    """A buffer, a lazy one, a counter and a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: torch.Tensor
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("lazy", None)
        self.calls, self.draw = 0, random.Random(0)


def test_a_buffer_that_was_written_to_has_its_values_again() -> None:
    module = Noted()
    kept, tensor = Buffer(module, "seen"), module.seen
    assert not kept.changed
    module.seen.add_(1.0)
    assert kept.changed
    kept.restore()
    assert module.seen is tensor
    assert tensor.tolist() == [0.0, 0.0]


def test_a_buffer_that_was_replaced_or_made_is_in_its_place_again() -> None:
    module = Noted()
    seen, lazy, tensor = Buffer(module, "seen"), Buffer(module, "lazy"), module.seen
    module.seen, module.lazy = torch.ones(2), torch.ones(1)
    assert not seen.changed
    seen.restore()
    lazy.restore()
    assert module.seen is tensor
    assert module.lazy is None


def test_a_write_that_nothing_counts_is_undone_by_force_only() -> None:
    module = Noted()
    kept = Buffer(module, "seen")
    module.seen.data.add_(1.0)
    kept.restore()
    assert module.seen.tolist() == [1.0, 1.0]
    kept.enforce()
    assert module.seen.tolist() == [0.0, 0.0]


def test_attributes_and_their_generators_are_put_back_and_new_ones_go() -> None:
    module = Noted()
    kept, first = Attributes(module), random.Random(0).random()
    module.calls = 3
    vars(module)["new"] = "made"
    assert module.draw.random() == first
    module.eval()
    kept.restore()
    assert module.calls == 0
    assert module.training
    assert not hasattr(module, "new")
    assert module.draw.random() == first


def test_the_state_of_an_optimizer_is_put_back_with_its_damping() -> None:
    p, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [p], "damping": 0.5}, {"params": [other], "damping": 2.0}], lr=0.1)
    optimizer.state[p] = {"solution": torch.tensor([1.0])}
    kept = OptimizerState(optimizer, [p, other])
    optimizer.state[p]["solution"] = torch.tensor([7.0])
    optimizer.state[other] = {"solution": torch.tensor([7.0])}
    optimizer.param_groups[0]["damping"] = 9.0
    kept.restore()
    assert optimizer.state[p] == {"solution": torch.tensor([1.0])}
    assert other not in optimizer.state
    assert [group["damping"] for group in optimizer.param_groups] == [0.5, 2.0]
