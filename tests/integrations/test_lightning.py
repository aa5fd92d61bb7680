"""The callback for Lightning, in trainings by Lightning itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L  # noqa: N812
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tests.ranks import together
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from latephase import HessianFree, PhaseSwitch
from latephase.integrations.lightning import LatePhase

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*`LeafSpec` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

OPTIONS: dict[str, Any] = {"damping": 0.1, "cg_max_iter": 10}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1)).double()


def batches() -> DataLoader[Any]:
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return DataLoader(TensorDataset(x, (x[:, :1] * x[:, 1:2]).sin()), batch_size=32)


class Module(L.LightningModule):
    """As one writes it for any optimizer."""

    def __init__(self, schedule: str = "none") -> None:
        super().__init__()
        self.net = network()
        self.schedule = schedule
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(self.trainer.callback_metrics["train_loss_step"]))

    def configure_optimizers(self) -> Any:
        adam = torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=1e-3)
        if self.schedule == "none":
            return adam
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 10)
        if self.schedule == "dict":
            return {"optimizer": adam, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
        return [adam], [cosine]


def trainer(epochs: int, *callbacks: Any, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"enable_checkpointing": False, **quiet, **options}
    return L.Trainer(max_epochs=epochs, callbacks=list(callbacks), **options)


def by_hand(evaluation: str) -> tuple[nn.Module, list[float]]:
    """Two epochs of Adam, two of Hessian-free steps; the loss of each batch before its step."""
    model, losses = network(), []
    adam = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)
    opt = PhaseSwitch(adam, HessianFree(model.parameters(), weight_decay=1e-3, **OPTIONS), when=6)
    torch.manual_seed(5)
    for _ in range(4):
        before = None
        for x, y in batches():

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                loss = F.mse_loss(model(x), y)
                opt.zero_grad()
                loss.backward()
                return loss

            state = torch.get_rng_state()
            losses.append(float(F.mse_loss(model(x), y).detach()))
            torch.set_rng_state(state)
            opt.step(closure, **({} if opt.phase == "first" else {"evaluate": before}))
            before = None if evaluation == "same" else lambda x=x, y=y: F.mse_loss(model(x), y)
    return model, losses


@pytest.mark.parametrize("evaluation", ["previous", "same"])
def test_it_steps_as_a_loop_by_hand(evaluation: str) -> None:
    expected, losses = by_hand(evaluation)
    module, callback = Module(), LatePhase(2, evaluation, **OPTIONS)
    torch.manual_seed(5)
    fit = trainer(4, callback)
    fit.fit(module, batches())
    for p, q in zip(module.net.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)
    assert callback.switch is not None
    assert callback.switch.phase == "second"
    assert callback.switch.reason.startswith("epoch 2 begins")
    # Only the first call of each step is logged, whatever trial points there were.
    assert module.losses == pytest.approx(losses, rel=1e-6)
    assert float(fit.callback_metrics["train_loss_epoch"]) == pytest.approx(sum(losses[-3:]) / 3, rel=1e-6)
    record = callback.switch.second.last_step  # type: ignore[attr-defined]
    assert float(fit.callback_metrics["hf/loss_after"]) == pytest.approx(record.loss_after, rel=1e-6)
    assert fit.global_step == 12


@pytest.mark.parametrize("schedule", ["none", "dict", "lists"])
def test_it_resumes_to_the_bit_in_either_phase(schedule: str, tmp_path: Path) -> None:
    whole = Module(schedule)
    torch.manual_seed(5)
    keep = L.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    trainer(5, LatePhase(2, **OPTIONS), keep, RandomNumbers(), enable_checkpointing=True).fit(whole, batches())
    for epoch in 0, 3:
        resumed = Module(schedule)
        callback = LatePhase(2, **OPTIONS)
        path = str(tmp_path / f"epoch={epoch}.ckpt")
        trainer(5, callback, RandomNumbers()).fit(resumed, batches(), ckpt_path=path, weights_only=False)
        for p, q in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
            assert torch.equal(p, q)
        assert callback.switch is not None
        assert callback.switch.phase == "second"


class RandomNumbers(L.Callback):
    """Dropout's masks, which Lightning's checkpoints do not hold, are the same in each run of a step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(trainer.global_step)


def test_a_scheduler_moves_the_first_phase_alone() -> None:
    module, callback = Module("dict"), LatePhase(1, **OPTIONS)
    trainer(2, callback).fit(module, batches())
    assert callback.switch is not None
    assert callback.switch.first.param_groups[0]["lr"] < 1e-2
    assert callback.switch.second.param_groups[0]["lr"] == 1.0
    assert callback.switch.second.param_groups[0]["weight_decay"] == 1e-3
    other = LatePhase(1, **OPTIONS, weight_decay=0.5)
    trainer(2, other).fit(Module(), batches())
    assert other.switch is not None
    assert other.switch.second.param_groups[0]["weight_decay"] == 0.5


def test_a_condition_can_begin_the_second_phase() -> None:
    module, callback = Module(), LatePhase(lambda steps, loss: steps >= 4, **OPTIONS)
    trainer(2, callback).fit(module, batches())
    assert callback.switch is not None
    assert callback.switch.reason.startswith("the condition held after 4 steps")


def test_fit_can_be_called_again() -> None:
    module, callback = Module(), LatePhase(0, **OPTIONS)
    for _ in range(2):
        trainer(1, callback).fit(module, batches())
        assert isinstance(callback.switch, PhaseSwitch)
        assert isinstance(callback.switch.first, torch.optim.Adam)


class Manual(Module):
    """Steps by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        opt = self.optimizers()

        def closure() -> Tensor:
            loss = F.mse_loss(self.net(batch[0]), batch[1])
            opt.zero_grad()
            self.manual_backward(loss)
            return loss

        opt.step(closure=closure)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        pass


def test_manual_optimization() -> None:
    expected, _ = by_hand("same")
    module, callback = Manual(), LatePhase(2, "same", **OPTIONS)
    torch.manual_seed(5)
    trainer(4, callback).fit(module, batches())
    for p, q in zip(module.net.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


class Failing(Module):
    """Raises at a trial point."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 5:
            raise RuntimeError("no luck")
        return super().training_step(batch, batch_idx)


def test_an_exception_at_a_trial_point_leaves_everything_as_it_was() -> None:
    module, callback = Failing(), LatePhase(0, **OPTIONS)
    fit = trainer(1, callback)
    with pytest.raises(RuntimeError, match="no luck"):
        fit.fit(module, batches())
    assert callback._logged is None


class TwoOptimizers(Module):
    """As adversarial networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[3])]


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Module, {"gradient_clip_val": 1.0}, r"cannot clip gradients.*gradient_clip_val"),
        (Module, {"accumulate_grad_batches": 2}, r"on one batch, not on 2"),
        (TwoOptimizers, {}, r"follows one optimizer, and configure_optimizers returned 2"),
    ],
)
def test_what_steps_cannot_honour_is_refused(module: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(1, LatePhase(0), **options).fit(module(), batches())


def test_wrong_options_are_told_when_constructed() -> None:
    with pytest.raises(ValueError, match="start must be ≥ 0"):
        LatePhase(-1)
    with pytest.raises(ValueError, match="evaluation must be one of 'previous', 'same'"):
        LatePhase(1, "next")
    with pytest.raises(TypeError, match="dampin"):
        LatePhase(1, dampin=1.0)


SMOOTH: dict[str, Any] = {"solver": "direct"}  # what another order of samples changes stays small


def by_two(rank: int, folder: Path, whole: bool) -> tuple[list[Tensor], Any, list[float]]:
    """Two epochs of Adam, two of Hessian-free steps; from a checkpoint in the last of them if not the whole."""
    module, callback = Module(), LatePhase(2, **SMOOTH)
    module.net[2] = nn.Identity()  # its masks would be each rank's own
    callbacks: list[Any] = [callback]
    if whole:
        callbacks.append(L.callbacks.ModelCheckpoint(folder, filename="{epoch}", every_n_epochs=1, save_top_k=-1))
    own: dict[str, Any] = {"use_distributed_sampler": False, "enable_checkpointing": whole}  # Lightning's own shuffles
    data = batches().dataset
    loader = DataLoader(data, batch_size=32, sampler=DistributedSampler(data, 2, rank, shuffle=False))
    path = None if whole else str(folder / "epoch=2.ckpt")
    fit = trainer(4, *callbacks, devices=2, strategy="ddp", **own)
    fit.fit(module, loader, ckpt_path=path, weights_only=None if whole else False)
    assert callback.switch is not None
    assert callback.switch.phase == "second"
    record = callback.switch.second.last_step  # type: ignore[attr-defined]
    return [p.detach() for p in module.net.parameters()], record, module.losses


def test_two_devices_take_each_step_together(tmp_path: Path) -> None:
    (folder := tmp_path / "checkpoints").mkdir()
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    whole = together(2, tmp_path / "whole", by_two, folder, True)
    expected = networks_of_halves()
    assert whole[0][2] != whole[1][2]  # each has its own samples
    for parameters, record, losses in whole:
        for p, q in zip(parameters, expected, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
        assert record == replace(whole[0][1], seconds=record.seconds)
        assert len(losses) == 8
    resumed = together(2, tmp_path / "resumed", by_two, folder, False)
    for (parameters, *_), (again, *_) in zip(whole, resumed, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(parameters, again, strict=True))


def networks_of_halves() -> list[Tensor]:
    """The same by hand: of each 64 samples, half are one device's and half the other's."""
    model = network()
    model[2] = nn.Identity()
    adam = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)
    opt = PhaseSwitch(adam, HessianFree(model.parameters(), weight_decay=1e-3, **SMOOTH), when=4)
    x, y = batches().dataset.tensors  # type: ignore[attr-defined]
    for _ in range(4):
        before = None
        for first in (0, 64):

            def loss(x: Tensor = x[first : first + 64], y: Tensor = y[first : first + 64]) -> Tensor:
                return F.mse_loss(model(x), y)

            def closure(loss: Any = loss) -> Tensor:
                found = loss()
                opt.zero_grad()
                found.backward()
                return found

            opt.step(closure, **({} if opt.phase == "first" else {"evaluate": before}))
            before = loss
    return [p.detach() for p in model.parameters()]
