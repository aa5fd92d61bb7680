"""Whether second-order steps are worth trying on a network: a few products and one step, which is taken back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latephase import checks
from latephase.curvature import ggn
from latephase.finishing.data import examples
from latephase.finishing.judge import Judge, training_undisturbed
from latephase.finishing.prices import shortest
from latephase.finishing.setting import device_of
from latephase.finishing.task import task_of
from latephase.optimizer import HessianFree
from latephase.parameters import Parameters
from latephase.parts.krylov import Krylov, lanczos
from latephase.random_state import seed as seed_all
from latephase.records import StepRecord
from latephase.tasks.closure_task import ClosureTask, no_examples
from latephase.tasks.split import Split
from latephase.tasks.task import Task

MOST = 2048  # examples that the trial step is made of; half as many judge it
GRADIENTS = 16  # of batches, from which the noise is estimated
PRODUCTS = 20  # for the spectrum
SMALLEST = 1e-12  # damping
MOST_BATCHES = 100  # in the data, above which steps on all of them are too dear beside what averages noise
LEAST_GAIN = 1e-3  # share of the loss that a step without noise must take away
LEAST_SIGNAL = 1.0  # below, a step follows noise


@dataclass(frozen=True)
class Amenability:
    """Whether second-order steps promise something, and why.

    Attributes:
        amenable: The verdict.
        reason: Why, in words.
        signal: ‖g‖² over the variance of the mean gradient on the examples of the trial step; infinite where nothing
            is drawn. Below 1 a step follows noise.
        gain: Share of the held-out loss that the trial step took away; negative where it made it larger.
        reduction_ratio: That change over the one that the quadratic model predicted.
        largest_eigenvalue: Of the GGN, as a Krylov space of the gradient sees it.
        decay: The tenth eigenvalue there over the first; None where there are fewer.
        price: Of the step: its seconds over those of a gradient on the same examples.
        step: The step's record.

    >>> theta = nn.Linear(2, 1, bias=False)
    >>> found = amenability(theta, nn.MSELoss(), (torch.eye(2), torch.ones(2, 1)), batch_size=2)
    >>> print(str(found).splitlines()[0])
    amenable to second-order steps: gradients are without noise, and the trial step makes the loss smaller
    """

    amenable: bool
    reason: str
    signal: float
    gain: float
    reduction_ratio: float
    largest_eigenvalue: float
    decay: float | None
    price: float
    step: StepRecord

    def __str__(self) -> str:
        decay = "" if self.decay is None else f", the tenth {self.decay:.2g} of it"
        return (
            f"{'amenable' if self.amenable else 'not amenable'} to second-order steps: {self.reason}\n"
            f"  signal-to-noise ratio of the gradient {self.signal:.3g}\n"
            f"  one step for the price of {self.price:.3g} gradients: held-out loss {-self.gain:+.2%}, "
            f"{self.reduction_ratio:.2g} times what was predicted\n"
            f"  largest eigenvalue {self.largest_eigenvalue:.3g}{decay}"
        )


def amenability(
    model: nn.Module,
    loss_func: Callable[..., object],
    data: object = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Amenability:
    """Say whether second-order steps are worth trying on a network as it stands, which stays as it is.

    Gradients of a few batches show the noise; a trial step on other data than it is judged on shows what curvature
    gains. How often the verdict is right: docs/finish.md.

    Args:
        model: The network, half-trained.
        loss_func: As for `finish`: a loss of (outputs, targets), or without `data` a closure.
        data: Training data as for `finish`.
        optimizer: What has trained the network, for its weight decay.
        batch_size: Examples per gradient of a first-order step. Default: the loader's, or 128.
        seed: For which examples are drawn.

    Returns:
        The verdict, with its numbers.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For one out of range, fewer than eight examples, or a loss that is not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> x = torch.linspace(-1.0, 1.0, 100).unsqueeze(1)
        >>> amenability(model, nn.MSELoss(), (x, x**2), batch_size=100).amenable
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    checks.function("loss_func", loss_func)
    device = device_of(model)
    if data is None:
        task = task_of(loss_func, optimizer, 1, closure=True)
        everything = no_examples(device).train
        parts = _Parts(task, everything, everything, everything, 1, 1, drawn=False)
    else:
        train = examples("data", data, device)
        size = train.size_of_batches(batch_size)
        task = task_of(loss_func, optimizer, min(size, len(train.split)), closure=False)
        parts = _drawn(task, train.split, torch.Generator().manual_seed(checks.non_negative_integer("seed", seed)))
    with training_undisturbed(model, device):
        seed_all(device, seed)
        return _measured(model, parts, device)


@dataclass(frozen=True)
class _Parts:
    task: Task
    model: Split
    search: Split
    held_out: Split
    batch: int
    count: int
    drawn: bool


def _drawn(task: Task, train: Split, generator: torch.Generator) -> _Parts:
    """Half of the examples for the step, a quarter for its damping, a quarter to judge it; all where none is noise."""
    if task.batch_size == len(train):
        return _Parts(task, train, train, train, len(train), len(train), drawn=False)
    if len(train) < 8:
        raise ValueError(f"data must have at least 8 examples, not {len(train)}")
    order = torch.randperm(len(train), generator=generator)
    half, quarter = min(MOST, len(train) // 2), min(MOST // 2, len(train) // 4)
    ends = [half, half + quarter, half + 2 * quarter]
    model, search, held_out = (train.take(order[a:b]) for a, b in zip([0, *ends[:2]], ends, strict=True))
    return _Parts(task, model, search, held_out, task.batch_size, len(train), drawn=True)


def _measured(model: nn.Module, parts: _Parts, device: torch.device) -> Amenability:
    task, groups = parts.task, parts.task.parameter_groups(model)
    flat = Parameters([{**group} for group in groups])
    judge = Judge(task, parts.held_out, device, "held-out loss", True, _closure(task))
    before = judge(model)
    if not math.isfinite(before):
        raise ValueError(f"the loss is {before}, so there is nothing to measure")

    def gradient(batch: Split) -> Tensor:
        loss, _ = task.forward(model, batch)
        found = torch.autograd.grad(loss, flat.tensors, allow_unused=True)
        return flat.join([torch.zeros_like(p) if g is None else g for p, g in zip(flat.tensors, found, strict=True)])

    signal = _signal(parts, gradient) if parts.drawn else math.inf
    g = gradient(parts.model)
    cost = shortest(lambda: gradient(parts.model), device, times=1)
    curvature = ggn(lambda: task.forward(model, parts.model), flat.tensors)
    space = lanczos(lambda v: curvature @ v, g, most=PRODUCTS, enough=lambda T, beta: False)
    values = [] if space is None else space.eigenvalues.flip(0).tolist()
    largest, decay = (values[0] if values else math.nan), (values[9] / values[0] if len(values) > 9 else None)
    step = _step(model, parts, groups, max(float(g.square().mean()), SMALLEST))
    after = judge(model)
    predicted = (step.loss_after - step.loss_before) / step.reduction_ratio if step.reduction_ratio else math.nan
    gain, ratio, price = (before - after) / before, (after - before) / predicted, step.seconds / cost
    amenable, reason = _verdict(parts, signal, gain)
    return Amenability(amenable, reason, signal, gain, ratio, largest, decay, price, step)


def _closure(task: Task) -> Any:
    return task.closure if isinstance(task, ClosureTask) else None


def _signal(parts: _Parts, gradient: Callable[[Split], Tensor]) -> float:
    """‖g‖² over the variance of the mean of as many examples as the step's, both without bias."""
    size = min(parts.batch, max(1, len(parts.model) // GRADIENTS))
    count = min(GRADIENTS, len(parts.model) // size)
    found = torch.stack([gradient(parts.model.take(slice(i * size, (i + 1) * size))) for i in range(count)]).double()
    noise = float(found.var(dim=0).sum())  # of a batch
    square = float(found.mean(dim=0).square().sum()) - noise / count
    return max(0.0, square) / (noise * size / len(parts.model)) if noise > 0.0 else math.inf


def _step(model: nn.Module, parts: _Parts, groups: Any, damping: float) -> StepRecord:
    task = parts.task
    solver = Krylov(products=PRODUCTS, corrections=0) if parts.drawn else "auto"
    optimizer = HessianFree(groups, solver=solver, damping=damping)
    optimizer.step(
        lambda: task.forward(model, parts.model),
        evaluate=(lambda: task.forward(model, parts.search)) if parts.drawn else None,
    )
    assert optimizer.last_step is not None
    return optimizer.last_step


def _verdict(parts: _Parts, signal: float, gain: float) -> tuple[bool, str]:
    if not parts.drawn:
        if gain >= LEAST_GAIN:
            return True, "gradients are without noise, and the trial step makes the loss smaller"
        return False, f"gradients are without noise, yet the trial step takes less than {LEAST_GAIN:.1%} off the loss"
    epoch = parts.count / parts.batch
    if epoch > MOST_BATCHES:
        return False, (
            f"gradients on all data, which steps need here to be better than their noise, cost {epoch:,.0f} of the "
            "first-order steps that a decay or an average takes instead"
        )
    if signal < LEAST_SIGNAL:
        return False, "the gradient is not larger than its noise, so that there is nothing left to descend"
    return True, f"a gradient on all data costs no more than {epoch:,.0f} first-order steps, and is above its noise"
