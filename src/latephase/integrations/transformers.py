"""A second phase for Hugging Face's Trainer: Hessian-free steps follow the optimizer of its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from latephase.checks import fraction, positive_integer
from latephase.integrations.missing import install_first
from latephase.integrations.second_phase import following, logged
from latephase.optimizer import HessianFree
from latephase.switching.switch import PhaseSwitch

try:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType
    from transformers import Trainer
except ImportError as error:
    raise install_first("transformers", "transformers and accelerate", error) from error

Part = Callable[[], Tensor]


class LatePhaseTrainer(Trainer):
    """A `Trainer` whose last part is trained by Hessian-free steps.

    The loss is the Trainer's own, with its autocast, label smoothing and `num_items_in_batch`. A step takes all of the
    `gradient_accumulation_steps` batches at once, their graphs one after the other in memory. With two of them or
    more, the last is the evaluation batch, on which the step judges itself; with one it is the model batch, too.
    Only parameters that require gradients are trained, such as those of a LoRA adapter. The learning rate's schedule
    and `max_grad_norm` are for the first phase. Checkpoints hold both phases. Several processes (`torchrun`) take each
    step together.

    Args:
        *args: As for `Trainer`.
        start: When the second phase begins: a share of the training's steps below 1, or a number of steps ≥ 1.
        late: Options of `HessianFree`. By default L2 weight decay is kept, and decoupled weight decay (AdamW's) is
            no part of the objective.
        **kwargs: As for `Trainer`.

    Attributes:
        switch: The `PhaseSwitch`; None before the training.

    Raises:
        TypeError: For an argument of another type.
        ValueError: For one that is out of range, float16 (its gradients are scaled), sharded parameters, and several
            devices for one process.
    """

    def __init__(self, *args: Any, start: float, late: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.start = positive_integer("start", start) if start >= 1 else fraction("start", start)
        self.late = dict(late or {})
        HessianFree([nn.Parameter(torch.zeros(1))], **self.late)  # wrong options are told now
        self.switch: PhaseSwitch | None = None
        self._collected: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)
        if self.args.fp16:
            raise ValueError("LatePhaseTrainer takes no scaled gradients; use bf16=True instead of fp16=True")
        if self.args.n_gpu > 1:
            raise ValueError(
                f"LatePhaseTrainer wants a process for each of the {self.args.n_gpu} devices, not one for all of them: "
                "start with torchrun"
            )
        kind = self.accelerator.distributed_type
        if kind is not DistributedType.NO and not kind.name.startswith("MULTI_"):
            raise ValueError(f"LatePhaseTrainer needs all parameters on each device, not {kind.value}")

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Let the arguments' optimizer be the first phase."""
        first = super().create_optimizer(*args, **kwargs)
        if isinstance(first, PhaseSwitch):
            return first
        second = following(first, self.late, several=self.accelerator.num_processes > 1)
        self.switch = self.optimizer = _Switch(first, second, self._is_time, self._late_step)
        if self.start == 0:
            self.switch.hand_over("the training begins")
        return self.switch

    def _is_time(self, steps: int, loss: float | None) -> bool:
        return steps >= (self.start if self.start >= 1 else math.ceil(self.start * self.state.max_steps))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Compute gradients in the first phase, and collect the batches of a step in the second."""
        if self.switch is None or self.switch.phase == "first":
            return super().training_step(model, inputs, num_items_in_batch)
        self._collected.append(inputs)
        return torch.zeros((), device=self.args.device)  # the step adds the loss

    def _late_step(self, switch: PhaseSwitch) -> float:
        """Take a step on the batches collected."""
        batches, self._collected = self._collected, []
        last = -1 if len(batches) > 1 else None
        batch = self._parts(batches[:last])
        judged = batch if last is None else self._parts(batches[last:])
        # A part is an ordinary closure, which calls backward on the loss: there are no outputs to hand over.
        loss = switch.acc_step(lambda inputs: None, lambda outputs, part: part(), judged, batch, batch, reduction="sum")
        self._tr_loss += switch.second.last_step.loss_model  # type: ignore[attr-defined]
        return loss

    def _parts(self, batches: list[dict[str, Any]]) -> list[tuple[None, Part]]:
        """Closures whose losses add up to the Trainer's loss on these batches, as acc_step takes them."""
        _, items = self.get_batch_samples(iter(batches), len(batches), self.args.device)
        return [(None, partial(self._part, inputs, items, len(batches))) for inputs in batches]

    def _part(self, inputs: dict[str, Any], items: Tensor | int | None, batches: int) -> Tensor:
        """The Trainer means losses to be averaged over processes, and steps add them up: each brings its share."""
        self.current_gradient_accumulation_steps = batches
        processes = self.accelerator.num_processes
        with _divided(self.accelerator, processes):
            return super().training_step(self.model_wrapped, inputs, items) / processes

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the numbers of the step's record, too, as `hf/…`."""
        second = None if self.switch is None or self.switch.phase == "first" else self.switch.second
        record = getattr(second, "last_step", None)
        if record is not None and "loss" in logs:
            logs = {**logs, **logged(record)}
        super().log(logs, *args, **kwargs)


@contextmanager
def _divided(accelerator: Accelerator, by: int) -> Iterator[None]:
    """Let `accelerator.backward` divide losses."""
    before, accelerator.gradient_accumulation_steps = accelerator.gradient_accumulation_steps, by
    try:
        yield
    finally:
        accelerator.gradient_accumulation_steps = before


class _Switch(PhaseSwitch):
    """Steps without a closure in both phases."""

    def __init__(
        self,
        first: torch.optim.Optimizer,
        second: torch.optim.Optimizer,
        when: Callable[[int, float | None], bool],
        late_step: Callable[[PhaseSwitch], float],
    ) -> None:
        super().__init__(first, second, when)
        self._late_step = late_step

    def step(self, closure: Any = None, **options: Any) -> float | None:  # type: ignore[override]
        if closure is None and self.phase == "second":
            return self._late_step(self)
        return super().step(closure, **options)
