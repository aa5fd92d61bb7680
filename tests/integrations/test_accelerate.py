"""The optimizer under Accelerate: prepared like any other, saved and resumed, and told of accumulation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from tests.ranks import together
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from latephase import HessianFree, PhaseSwitch

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")


@pytest.fixture(autouse=True)
def _accelerate_begins_anew() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def setting(accelerator: Accelerator, **options: Any) -> tuple[nn.Module, Any, Any]:
    """A model, a switch after three steps of Adam, and data, all of them prepared."""
    set_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    opt = PhaseSwitch(adam, HessianFree(model.parameters(), damping=0.1, cg_max_iter=10, **options), when=3)
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x, (x[:, :1] * x[:, 1:2]).sin()), batch_size=16)
    prepared = accelerator.prepare(model, opt, loader)
    return prepared[0], prepared[1], prepared[2]


def step(accelerator: Accelerator, model: nn.Module, opt: Any, batch: tuple[Tensor, Tensor]) -> None:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = F.mse_loss(model(batch[0]), batch[1])
        accelerator.backward(loss)
        return loss

    opt.step(closure)


def test_it_resumes_to_the_bit_in_the_second_phase(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model, opt, loader = setting(accelerator)
    batches = list(loader)
    for number, batch in enumerate(batches):
        if number == 4:
            accelerator.save_state(str(tmp_path))
        step(accelerator, model, opt, batch)
    expected = [p.detach().clone() for p in model.parameters()]
    assert opt.optimizer.phase == "second"

    other, opt, _ = setting(accelerator)
    accelerator._models, accelerator._optimizers = [other], [opt]
    accelerator.load_state(str(tmp_path))
    assert opt.optimizer.phase == "second"
    for batch in batches[4:]:
        step(accelerator, other, opt, batch)
    for p, q in zip(other.parameters(), expected, strict=True):
        assert torch.equal(p, q)


def test_accumulation_over_batches_is_refused() -> None:
    """Only the last batch would count."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Linear(4, 1)
    model, opt = accelerator.prepare(model, HessianFree(model.parameters()))
    batch = torch.randn(8, 4), torch.randn(8, 1)
    before = [p.detach().clone() for p in model.parameters()]
    with accelerator.accumulate(model):
        step(accelerator, model, opt, batch)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    with (
        accelerator.accumulate(model),
        pytest.raises(RuntimeError, match=r"gradient_accumulation_steps=2.*acc_step"),
    ):
        step(accelerator, model, opt, batch)


def test_bfloat16() -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model, opt, loader = setting(accelerator)
    for batch in loader:
        step(accelerator, model, opt, batch)
    assert opt.optimizer.second.last_step.counts.products > 0


def by_two(rank: int) -> tuple[list[Tensor], float]:
    accelerator = Accelerator(cpu=True)
    model, opt, loader = setting(accelerator, process_group="world")
    for _ in range(2):
        for batch in loader:
            step(accelerator, model, opt, batch)
    assert opt.optimizer.phase == "second"
    return [p.detach() for p in model.parameters()], opt.optimizer.second.last_step.loss_after


def test_two_processes_take_each_step_together(tmp_path: Path) -> None:
    (parameters, loss), (parameters_too, loss_too) = together(2, tmp_path, by_two)
    assert loss == loss_too
    assert all(torch.equal(p, q) for p, q in zip(parameters, parameters_too, strict=True))
