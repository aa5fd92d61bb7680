"""DistributedDataParallel around the model: a step's own averaging, and none of the wrapper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from latephase import HessianFree, PhaseSwitch
from latephase.wrapped import QUIET
from tests.ranks import together


class Network(nn.Module):
    """With buffers that the wrapper broadcasts, and a layer that some calls leave out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.skipped = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 1)
        self.double()

    def forward(self, x: Tensor, *, all_layers: bool = True) -> Tensor:
        h = torch.tanh(self.norm(self.first(x)))
        return self.last(torch.tanh(self.skipped(h)) if all_layers else h)


class Around(nn.Module):
    """A model of which the wrapper is a part."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.inner(x, **options)


def part(rank: int, number: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(10 * rank + number), dtype=torch.float64)
    return x, (x[:, :1] * x[:, 1:2]).sin()


def steps(rank: int, model: nn.Module, opt: Any, **options: Any) -> Tensor:
    x, y = part(rank)

    def closure() -> tuple[Tensor, Tensor]:
        opt.zero_grad()
        outputs = model(x, **options)
        loss = F.mse_loss(outputs, y)
        loss.backward()
        return loss, outputs

    for _ in range(3):
        opt.step(closure)
    batches = [part(rank, number) for number in range(1, 3 + rank)]  # not as many on each rank
    opt.acc_step(model, F.mse_loss, batches)
    return torch.cat([p.detach().flatten() for p in model.parameters()] + [model.get_buffer(_mean(model)).clone()])


def _mean(model: nn.Module) -> str:
    return next(name for name, _ in model.named_buffers() if name.endswith("running_mean"))


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
}


def wrapped_and_plain(rank: int) -> dict[str, bool]:
    equal = {}
    for name, wrapping in OPTIONS.items():
        left_out = {"all_layers": name != "unused"}
        for solver in ("cg", "krylov"):
            plain, inside = Network(), Network()
            wrapper = DistributedDataParallel(inside, **wrapping)
            options: dict[str, Any] = {"process_group": "world", "solver": solver}
            expected = steps(rank, plain, HessianFree(plain.parameters(), **options), **left_out)
            found = steps(rank, Around(wrapper), HessianFree(inside.parameters(), **options), **left_out)
            equal[f"{name} {solver}"] = torch.equal(found, expected)
            usual = {"require_backward_grad_sync": True, "require_forward_param_sync": True}
            equal[f"{name} {solver} as found"] = all(
                vars(wrapper)[key] == {**QUIET, **usual, **wrapping}[key] for key in QUIET
            )
    return equal


def test_steps_are_those_of_the_module_inside(tmp_path: Path) -> None:
    for equal in together(2, tmp_path, wrapped_and_plain):
        assert len(equal) == 12
        assert all(equal.values()), equal


def two_phases(rank: int) -> list[Any]:
    """Adam by the wrapper's averages, then Hessian-free steps; who sees a loss of its own would switch earlier."""
    model = Network()
    wrapper = DistributedDataParallel(model)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    seen: list[float] = []

    def when(step: int, loss: float | None) -> bool:
        assert loss is not None
        seen.append(loss)
        return step >= 4 and loss > 0.0

    opt = PhaseSwitch(adam, HessianFree(model.parameters(), process_group="world"), when)
    x, y = part(rank)
    own: list[float] = []

    def closure() -> tuple[Tensor, Tensor]:
        opt.zero_grad()
        outputs = wrapper(x)
        loss = F.mse_loss(outputs, y)
        loss.backward()
        return loss, outputs

    for _ in range(7):
        loss = opt.step(closure)
        if len(own) < 4:
            own.append(float(loss))
    opt.hand_back()
    opt.step(closure)  # the wrapper averages gradients again
    return [seen, own, opt.steps, torch.cat([p.detach().flatten() for p in model.parameters()])]


def test_two_phases_in_one_wrapper(tmp_path: Path) -> None:
    (seen, own, taken, parameters), (seen_too, own_too, _, parameters_too) = together(2, tmp_path, two_phases)
    assert seen == seen_too
    assert len(seen) == 4
    assert taken == 8
    assert seen == pytest.approx([(a + b) / 2 for a, b in zip(own, own_too, strict=True)], rel=1e-12)
    assert own != own_too
    assert torch.equal(parameters, parameters_too)


def test_wrappers_that_cannot_be_quiet_are_refused() -> None:
    class FullyShardedDataParallel(Around):  # the real one wants a process group
        pass

    model = Network()
    wrapper = FullyShardedDataParallel(model)
    x, y = part(0)
    with pytest.raises(RuntimeError, match="wrapped in FullyShardedDataParallel"):
        HessianFree(model.parameters()).step(lambda: (F.mse_loss(wrapper(x), y), wrapper(x)))
