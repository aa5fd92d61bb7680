"""A second phase for Lightning: a callback that lets Hessian-free steps follow the module's own optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latephase.checks import choice, non_negative_integer
from latephase.integrations.missing import install_first
from latephase.integrations.second_phase import following, logged
from latephase.optimizer import HessianFree
from latephase.switching.conditions import When
from latephase.switching.switch import PhaseSwitch

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy
    from lightning.pytorch.trainer import call
    from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
except ImportError as error:
    raise install_first("lightning", "lightning", error) from error


class LatePhase(Callback):
    """Train with the module's own optimizer and schedulers first, and with Hessian-free steps from `start` on.

    What `configure_optimizers` returns becomes the first phase of a `PhaseSwitch`, so that checkpoints hold both
    phases, and a resumed training goes on in the one that it was in. `training_step` is what it was; in the second
    phase it is called several times per step, and only its first call is logged. On several devices (`strategy="ddp"`)
    all take each step together, on the mean of their losses.

    Args:
        start: The epoch with which the second phase begins; or a condition of `PhaseSwitch`, such as a
            `StallDetector`, that sees the loss of each step.
        evaluation: What steps judge themselves on: `"previous"`, the batch before in the same epoch (none, and so the
            same batch, for its first); or `"same"`.
        **options: Those of `HessianFree`. By default each group keeps its `weight_decay`.

    Attributes:
        switch: The `PhaseSwitch`; None before the fit.

    Raises:
        TypeError: For an argument of another type.
        ValueError: For one that is out of range; and from `Trainer.fit`, for what such steps cannot honour: clipped
            gradients, accumulation over batches, a gradient scaler, several optimizers, sharded parameters.
    """

    def __init__(self, start: int | When, evaluation: str = "previous", **options: Any) -> None:
        self.start = non_negative_integer("start", start) if isinstance(start, int) else start
        self.evaluation = choice("evaluation", evaluation, ["previous", "same"])
        self.options = options
        self.switch: PhaseSwitch | None = None
        HessianFree([torch.nn.Parameter(torch.zeros(1))], **options)  # wrong options are told now
        self._several = False
        self._before: tuple[Any, int] | None = None
        self._logged: _ResultCollection | None = None

    # ------------------------------------------------------------------ the two optimizers as one

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the module's optimizer be the first phase."""
        if stage != "fit":
            return
        _refuse_what_steps_cannot_honour(trainer)
        self._several = trainer.world_size > 1
        configure = getattr(pl_module.configure_optimizers, "by_itself", pl_module.configure_optimizers)

        def configure_both() -> Any:
            return self.switched(configure())

        configure_both.by_itself = configure  # type: ignore[attr-defined] # for another fit
        pl_module.configure_optimizers = configure_both  # type: ignore[method-assign]

    def switched(self, configured: Any) -> Any:
        """Return what `configure_optimizers` returned, with the switch in its optimizer's place."""
        found: list[torch.optim.Optimizer] = []

        def find(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
            found.append(optimizer)
            return optimizer

        _replaced(configured, find)
        if len({id(optimizer) for optimizer in found}) != 1:
            raise ValueError(f"LatePhase follows one optimizer, and configure_optimizers returned {len(found)}")
        first = found[0]
        second = following(first, self.options, several=self._several)
        second.register_step_post_hook(lambda *_: self._log_again())
        when = (lambda steps, loss: False) if isinstance(self.start, int) else self.start
        self.switch = switch = PhaseSwitch(first, second, when)
        if hasattr(first.step, "_wrapped_by_lr_sched"):
            _count_steps(switch)
        return _replaced(configured, lambda _: switch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the second phase where it is time."""
        self._before = None
        begins = isinstance(self.start, int) and trainer.current_epoch >= self.start
        if begins and self.switch is not None and self.switch.phase == "first":
            self.switch.hand_over(f"epoch {trainer.current_epoch} begins")

    # ------------------------------------------------------------------ a step

    @property
    def _second(self) -> HessianFree | None:
        """The second optimizer, in its phase."""
        switch = self.switch
        return switch.second if switch is not None and switch.phase == "second" else None  # type: ignore[return-value]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set what the step judges itself on."""
        if self._second is None:
            return
        before = self._before
        on_batch_before = None if before is None else lambda: _loss(trainer, pl_module, *before)
        self._second.set_evaluation(on_batch_before)
        self._before = (batch, batch_idx) if self.evaluation == "previous" else None

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """After the first `training_step` of a step: log no more of them."""
        if self._second is not None and self._logged is None:
            self._trainer = trainer
            self._logged, trainer.fit_loop.epoch_loop._results = (
                trainer.fit_loop.epoch_loop._results,
                _ResultCollection(training=True),
            )

    def _log_again(self) -> None:
        if self._logged is not None:
            self._trainer.fit_loop.epoch_loop._results, self._logged = self._logged, None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Log again, also after a step that failed."""
        self._log_again()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the numbers of the step's record, as `hf/…`."""
        if self._second is not None and self._second.last_step is not None:
            pl_module.log_dict(logged(self._second.last_step), on_step=True, on_epoch=False)


def _refuse_what_steps_cannot_honour(trainer: Trainer) -> None:
    if trainer.gradient_clip_val:
        raise ValueError("LatePhase cannot clip gradients: damping and line search keep its steps short; "
                         "leave out Trainer(gradient_clip_val=...)")  # fmt: skip
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(f"LatePhase steps on one batch, not on {trainer.accumulate_grad_batches}; "
                         "use larger batches instead of Trainer(accumulate_grad_batches=...)")  # fmt: skip
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ValueError("LatePhase takes no gradient scaler; use Trainer(precision='bf16-mixed')")
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        raise ValueError("LatePhase needs all parameters on each of several devices, as Trainer(strategy='ddp') has "
                         f"them, not {type(trainer.strategy).__name__}")  # fmt: skip


def _replaced(configured: Any, replace: Callable[[torch.optim.Optimizer], torch.optim.Optimizer]) -> Any:
    """Put others in the place of optimizers, also of those that schedulers have."""
    if isinstance(configured, torch.optim.Optimizer):
        return replace(configured)
    if isinstance(configured, dict):
        return {name: _replaced(value, replace) for name, value in configured.items()}
    if isinstance(configured, (list, tuple)):
        return type(configured)(_replaced(value, replace) for value in configured)
    if isinstance(getattr(configured, "optimizer", None), torch.optim.Optimizer):
        configured.optimizer = replace(configured.optimizer)
    return configured


def _count_steps(switch: PhaseSwitch) -> None:
    """Let a scheduler see that its optimizer steps, as it would itself have arranged with the first."""
    step = switch.step

    def counted(*args: Any, **options: Any) -> Any:
        switch._opt_called = True  # type: ignore[attr-defined]
        return step(*args, **options)

    counted._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    switch.step = counted  # type: ignore[method-assign]


def _loss(trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> Tensor:
    """The loss of `training_step`."""
    takes_index = "batch_idx" in inspect.signature(pl_module.training_step).parameters
    arguments = (batch, batch_idx) if takes_index else (batch,)
    output = call._call_strategy_hook(trainer, "training_step", *arguments)
    loss = output["loss"] if isinstance(output, dict) else output
    if not isinstance(loss, Tensor):
        raise TypeError(f"training_step returned no loss, but {type(output).__name__}")
    return loss
