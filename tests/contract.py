"""What the tests of the optimizer's contract share: a network that is easy to disturb, and snapshots to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import latephase.parts.cg
from latephase import HessianFree
from latephase.parts import conjugate_gradients
from latephase.parts.conjugate_gradients import CGPath

Batch = tuple[Tensor, Tensor]
Forward = Callable[[], tuple[Tensor, Tensor]]


def network(seed: int = 0) -> nn.Sequential:
    """A small network in training mode, with everything that a step must not disturb: buffers and random numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 2)]
        return nn.Sequential(*layers).double()


def plain_network(*widths: int, seed: int = 0) -> nn.Sequential:
    """Linear layers with tanh between them: no buffers, no random numbers. Default: 3, 4 and 2 units."""
    widths = widths or (3, 4, 2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.Tanh()]
        return nn.Sequential(*layers[:-1]).double()


def batch(n: int = 8, seed: int = 0, inputs: int = 3, outputs: int = 2) -> Batch:
    """N samples for regression; all seeds draw from one distribution, with little noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, outputs, generator=generator, dtype=torch.float64)
    return x, 2.0 + torch.sin(x.cumsum(dim=1)[:, -outputs:]) + 0.05 * noise


def closure(model: Callable[[Tensor], Tensor], data: Batch, loss_func: Any = mse_loss) -> Forward:
    """A closure that returns `(loss, outputs)`."""

    def forward() -> tuple[Tensor, Tensor]:
        inputs, targets = data
        outputs = model(inputs)
        return loss_func(outputs, targets), outputs

    return forward


class Problem:
    """A network, an optimizer, and disjoint batches. The loss is a module, so that hooks can reach everything."""

    def __init__(self, model: nn.Sequential | None = None, **options: Any) -> None:
        self.model = network() if model is None else model
        self.loss_func = nn.MSELoss()
        self.opt = HessianFree(self.model.parameters(), **{"cg_max_iter": 6, **options})
        for p in self.model.parameters():
            p.grad = torch.full_like(p, 0.5)
        self.gradient = [batch(16, seed=1), batch(24, seed=2), batch(20, seed=3)]
        self.curvature = self.gradient[:2]
        self.evaluation = [batch(20, seed=4), batch(12, seed=5)]

    @property
    def forward(self) -> Forward:
        return closure(self.model, self.gradient[0], self.loss_func)

    @property
    def evaluate(self) -> Forward:
        return closure(self.model, self.evaluation[0], self.loss_func)

    def step(self, **options: Any) -> float:
        """One call of `step`."""
        return self.opt.step(**{"forward": self.forward, "evaluate": self.evaluate, **options})

    def acc_step(self, **options: Any) -> float:
        """One call of `acc_step`, with lists of micro-batches that differ in length."""
        lists = {
            "loss_datalist": self.evaluation,
            "grad_datalist": self.gradient,
            "mvp_datalist": self.curvature,
        }
        return self.opt.acc_step(self.model, self.loss_func, **{**lists, **options})

    def snapshot(self) -> dict[str, Any]:
        """Every value that a step may change, and where it lies."""
        return {**values(self.model, self.opt), "places": places(self.model)}


# ---------------------------------------------------------------------- snapshots


def values(model: nn.Module, opt: HessianFree) -> dict[str, Any]:
    """Parameters, gradients, buffers, random number stream, and all that the optimizer keeps."""
    return {
        "parameters": {name: p.detach().clone() for name, p in model.named_parameters()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "buffers": {name: b.clone() for name, b in model.named_buffers()},
        "random numbers": torch.get_rng_state(),
        "optimizer": copy.deepcopy(opt.state_dict()),
    }


def places(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Which objects the parameters and buffers are, and their storage."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (id(t), t.data_ptr(), t.stride(), t.requires_grad) for name, t in tensors}


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Name everything in which two snapshots differ, to the bit: NaN equals NaN, and 0.0 is not -0.0."""
    if type(before) is not type(after):
        return [f"{where}: {before!r} -> {after!r}"]
    if isinstance(before, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return _of_parts((before.get(key), after.get(key), f"{where}/{key}") for key in keys)
    if isinstance(before, (list, tuple)):
        if len(before) != len(after):
            return [f"{where}: {len(before)} -> {len(after)} entries"]
        return _of_parts((a, b, f"{where}/{i}") for i, (a, b) in enumerate(zip(before, after, strict=True)))
    same = _same_bits(before, after) if isinstance(before, Tensor) else repr(before) == repr(after)
    return [] if same else [f"{where}: {before!r} -> {after!r}"]


def _of_parts(parts: Iterable[tuple[Any, Any, str]]) -> list[str]:
    return [difference for part in parts for difference in differences(*part)]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if (a.dtype, a.shape, a.stride()) != (b.dtype, b.shape, b.stride()):
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def report(opt: HessianFree) -> dict[str, Any]:
    """The last step's record, but for the seconds."""
    assert opt.last_step is not None
    return {name: value for name, value in vars(opt.last_step).items() if name != "seconds"}


# ---------------------------------------------------------------------- the quadratic model, looked at from outside


class Spy:
    """Sees what conjugate gradients are asked for in every step, A as a dense matrix built twice, and their path."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.A: list[Tensor] = []
        self.A_again: list[Tensor] = []
        self.b: list[Tensor] = []
        self.options: list[dict[str, Any]] = []
        self.paths: list[CGPath] = []
        self._cg = conjugate_gradients.cg
        monkeypatch.setattr(latephase.parts.cg, "cg", self)

    def __call__(self, A: Callable[[Tensor], Tensor], b: Tensor, **options: Any) -> CGPath:
        self.b.append(b.clone())
        self.A.append(dense(A, b))
        self.A_again.append(dense(A, b))
        self.options.append(options)
        self.paths.append(self._cg(A, b, **options))
        return self.paths[-1]


def dense(A: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The matrix of an operator, from its products with the unit vectors."""
    return torch.stack([A(e) for e in torch.eye(like.numel(), dtype=like.dtype)], dim=1)


def flat(tensors: Iterable[Tensor | None], like: Iterable[Tensor]) -> Tensor:
    """One vector; None means zeros."""
    pairs = zip(tensors, like, strict=True)
    return torch.cat([(torch.zeros_like(p) if t is None else t).detach().reshape(-1) for t, p in pairs])


def gradient(model: nn.Module, data: Batch, loss_func: Any = mse_loss) -> Tensor:
    """The gradient of the loss, by one backward pass."""
    parameters = list(model.parameters())
    loss, _ = closure(model, data, loss_func)()
    return flat(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)


def ggn(model: nn.Module, data: Batch) -> Tensor:
    """The GGN of the mean squared error, from one backward pass per output: no second derivatives."""
    inputs, targets = data
    parameters = list(model.parameters())
    outputs = model(inputs).reshape(-1)
    grads = [torch.autograd.grad(z, parameters, retain_graph=True, allow_unused=True) for z in outputs]
    J = torch.stack([flat(row, parameters) for row in grads])
    return 2.0 / targets.numel() * J.T @ J


def hessian(model: nn.Module, data: Batch, loss_func: Any = mse_loss) -> Tensor:
    """The Hessian of the loss, from one backward pass per entry of the gradient."""
    parameters = list(model.parameters())
    loss, _ = closure(model, data, loss_func)()
    grads = torch.autograd.grad(loss, parameters, create_graph=True)
    entries = torch.cat([g.reshape(-1) for g in grads])
    rows = [torch.autograd.grad(g, parameters, retain_graph=True, allow_unused=True) for g in entries]
    return torch.stack([flat(row, parameters) for row in rows])


def identity(C: Tensor) -> Tensor:
    """The identity matrix of the same size."""
    return torch.eye(len(C), dtype=C.dtype)
