"""`latephase.finish`: end a training in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from latephase import checks
from latephase.distributed import Ranks, check_group, find_ranks, mean
from latephase.finishing.budget import Budget, Meter
from latephase.finishing.candidates import STRATEGIES, candidates, usable
from latephase.finishing.journal import Journal, random_from_plain, random_to_plain
from latephase.finishing.phase import Phase
from latephase.finishing.prices import flops, gradients
from latephase.finishing.progress import Show, bar
from latephase.finishing.race import Race
from latephase.finishing.report import FinishReport
from latephase.finishing.setting import Setting, device_of, on_closures, on_examples
from latephase.random_state import read_random_state, write_random_state
from latephase.random_state import seed as seed_all

Callback = Callable[[FinishReport], object]
CLOCK = "the clock"  # what ranks meet at between steps


def finish(
    model: nn.Module,
    loss_func: Callable[..., object],
    train_data: object = None,
    *,
    budget: float | str,
    valid_data: object = None,
    judge: str = "auto",
    optimizer: torch.optim.Optimizer | None = None,
    batch_size: int | None = None,
    strategies: Iterable[str] = STRATEGIES,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
    process_group: object | None = None,
) -> FinishReport:
    """End a training: find out by short trials what helps this network, and spend the rest of the budget on that.

    A decay of the learning rate, weight averaging, Hessian-free steps and L-BFGS are each tried for 2 % of the budget.
    What promises most gets the rest, and is compared with the others again after every 10 %. The network ends in the
    best state that was seen, at worst the one it came in, and in the modes (training or evaluation) it came in.

    Args:
        model: The network, half-trained. It is trained in place.
        loss_func: Maps (outputs, targets) to the mean loss. Without `train_data`: a closure that takes nothing and
            returns the loss or (loss, outputs) on all the data, for losses of another form (physics-informed networks).
        train_data: A pair of tensors (inputs, targets), a map-style data set of such pairs, a `DataLoader`, or an
            iterable of batches. See `latephase.finishing.data.examples` for what is kept in memory.
        budget: Seconds, or `"90s"`, `"10min"`, `"2h"`, which everything counts towards; or `"300gradients"`, counted
            work on batches of `batch_size`, with which a finish repeats to the bit.
        valid_data: Held-out data of the same forms (in the closure form: a closure that returns the loss). By default
            there are none.
        judge: What states are compared by: `"valid"`, the mean loss on `valid_data`; `"objective"`, that on the
            training data plus the optimizer's L2 term; or `"auto"`, the first where there are such data.
        optimizer: The one that has trained the network so far: the decay and the averaging go on with its learning
            rate and moments. It is not changed. Default: Adam at 0.001, which knows nothing of the training.
        batch_size: Examples per gradient. Default: the loader's, or 128.
        strategies: Names of those that may compete, of `"decay"`, `"averaging"`, `"l-bfgs"` and `"hessian-free"`. One
            alone gets all of the budget.
        seed: For the batches and for dropout.
        out: A folder in which the finish keeps where it stands, and goes on from there when it is called again.
        callbacks: Called with the report so far whenever the network has been judged. What one raises ends the finish,
            with the best state so far in the network, and is raised.
        progress: Whether to show a progress bar, where `rich` is installed.
        process_group: The processes that finish the training together, all by the same call from the same network:
            None for this one alone, `"world"`, or a group of `torch.distributed`. Data that all of them give are shared
            out; else each gives its own share. `batch_size` is that of one of them, as DistributedDataParallel has it,
            and so the objective is the mean of their losses.

    Returns:
        What was done, why, and what came of it. Its `state` is the best state.

    Raises:
        TypeError: For an argument of the wrong type, naming it and what is allowed.
        ValueError: For one out of range, likewise; or if the network's score is not finite before the first step.
        RuntimeError: If `torch.distributed` runs several processes and `process_group` names none, or the reverse.
        RankError: If another process fails in what is no strategy's affair, or dies, or the processes do not start
            from one state.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.linspace(-1.0, 1.0, 100).unsqueeze(1)
        >>> model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> report = finish(model, nn.MSELoss(), (x, x**2), budget="2000gradients", batch_size=100, progress=False)
        >>> report.score < 0.01 * report.score_before
        True
    """
    given = Budget.parse(budget)
    meter = Meter(given)
    model = model.module if isinstance(model, DistributedDataParallel) else model
    _check(model, loss_func, judge, callbacks := tuple(callbacks))
    chosen = _checked_strategies(strategies)
    device = device_of(model)
    ranks = find_ranks(check_group(process_group), device)
    random, modes = read_random_state(device), [(layer, layer.training) for layer in model.modules()]
    if not model.training:
        model.train()
    seed_all(device, checks.non_negative_integer("seed", seed))
    try:
        with ranks.attended(CLOCK):
            _check_optimizer(optimizer, model)
            held_out = _held_out(judge, valid_data)
            if train_data is None:
                setting = on_closures(model, loss_func, held_out, optimizer, process_group)
            else:
                setting = on_examples(
                    model, loss_func, train_data, held_out, optimizer, batch_size, process_group, ranks
                )
            finishing = _Finish(model, setting, given, meter, optimizer, chosen, seed, out, callbacks, ranks, device)
            return finishing.run(progress and ranks.rank == 0)
    finally:
        for layer, training in modes:
            layer.training = training
        write_random_state(device, random)


class _Finish:
    """A finish under way."""

    def __init__(
        self,
        model: nn.Module,
        setting: Setting,
        budget: Budget,
        meter: Meter,
        optimizer: torch.optim.Optimizer | None,
        strategies: tuple[str, ...],
        seed: int,
        out: str | os.PathLike[str] | None,
        callbacks: tuple[Callback, ...],
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self._model, self._budget, self._meter, self._device = model, budget, meter, device
        self._callbacks, self._ranks = callbacks, ranks
        self._remarks = (*_about(optimizer), *setting.remarks)
        identity = _identity(model, setting, budget, seed, strategies, ranks)
        ranks.same("the network, the data or how finish is called", lambda: (list(model.parameters()), identity))
        self._journal = Journal(out if ranks.rank == 0 else None, identity)
        saved = ranks.gather("where the finish stood", self._journal.read)[0]
        looked_at = len(setting.judge.examples) if saved is None else saved["looked_at"]
        if budget.unit == "seconds" and saved is None:
            looked_at = setting.judge.affordable(budget.amount, model)
        self._judge = judge = setting.judge.on(looked_at, seed)
        generator = torch.Generator().manual_seed(seed)
        size, rate = setting.size, budget.amount
        if budget.unit == "seconds":
            size = replace(size, flops=mean(ranks, "the speed of matrices", lambda: flops(budget.amount, device)))
            task, train = setting.task, setting.data.train
            rate = mean(ranks, "the speed of gradients", lambda: gradients(budget.amount, task, model, train))
        entrants = [c for c in candidates(setting.task, size, optimizer) if c.name in strategies]
        self._race = Race(setting.task, model, setting.data, generator, entrants, judge, rate)
        if not torch.tensor(self._race.start_score).isfinite():
            raise ValueError(
                f"the {judge.name} of the network as given is {self._race.start_score}, so nothing can be compared "
                "with it; look for what is not finite in its weights, its data and its loss"
            )
        if saved is not None:
            self._race.load_state_dict(saved["race"])
            self._meter = Meter(budget, saved["seconds"], saved["gradients"])
            random_from_plain(device, saved["random"])

    def run(self, progress: bool) -> FinishReport:
        try:
            with bar(progress) as show:
                self._until_over(show)
        finally:
            self._model.load_state_dict(self._race.best_state)
        self._save()
        return self._report()

    def _until_over(self, show: Show) -> None:
        race, meter = self._race, self._meter
        while not race.over:
            step = race.step(self._share())
            if step is None:
                self._seen(show)
                continue
            meter.gradients += step.gradients
            if race.took(step, self._share()):
                self._seen(show)
        self._share()  # who has left is missed

    def _share(self) -> float:
        """The share of the budget that is gone, of which all ranks know the same."""
        return mean(self._ranks, CLOCK, lambda: self._meter.share)

    def _seen(self, show: Show) -> None:
        """Save where the finish stands, and tell everybody."""
        self._save()
        phase = self._race.phases[-1] if self._race.phases else None
        show(self._meter.share, _remark(phase, self._race.best_score))
        for callback in self._callbacks:
            callback(self._report())

    def _save(self) -> None:
        self._journal.write({
            "race": self._race.state_dict(),
            "looked_at": len(self._judge.examples),
            "seconds": self._meter.seconds,
            "gradients": self._meter.gradients,
            "random": random_to_plain(self._device),
        })  # fmt: skip

    def _report(self) -> FinishReport:
        race = self._race
        lost = [f"where it stood could not be written: {self._journal.lost}"] if self._journal.lost else []
        if race.ended_early:
            lost.append("nothing promised to be better than the best state, so the rest of the budget was not spent")
        return FinishReport(
            budget=self._budget,
            judged_by=self._judge.name,
            score_before=race.start_score,
            score=race.best_score,
            best_by=race.best_by,
            phases=tuple(Phase.from_json(phase.to_json()) for phase in race.phases),
            seconds=self._meter.seconds,
            gradients=self._meter.gradients,
            remarks=(*self._remarks, *lost),
            state=race.best_state,
        )


def _remark(phase: Phase | None, best: float) -> str:
    if phase is None:
        return f"best {best:.4g}"
    return f"{'trying' if phase.trial else 'spending on'} {phase.candidate}; best {best:.4g}; {phase.reason}"


def _check(model: object, loss_func: Any, judge: str, callbacks: Iterable[Callback]) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if not any(p.requires_grad and p.numel() for p in model.parameters()):
        raise ValueError("model must have a parameter to train, one that has requires_grad=True")
    checks.function("loss_func", loss_func)
    checks.choice("judge", judge, ["auto", "valid", "objective"])
    for callback in callbacks:
        checks.function("callbacks", callback)


def _checked_strategies(strategies: Iterable[str]) -> tuple[str, ...]:
    chosen = tuple(checks.choice("strategies", name, STRATEGIES) for name in strategies)
    if not chosen:
        raise ValueError(f"strategies must name at least one of {', '.join(STRATEGIES)}")
    return chosen


def _held_out(judge: str, valid_data: object) -> object:
    """What of the held-out data is to judge; None if the objective is."""
    if judge == "valid" and valid_data is None:
        raise ValueError('judge="valid" needs valid_data')
    return None if judge == "objective" else valid_data


def _about(optimizer: torch.optim.Optimizer | None) -> list[str]:
    if optimizer is None or usable(optimizer):
        return []
    return [f"{type(optimizer).__name__} steps on closures and cannot be continued; the decay is one of Adam"]


def _check_optimizer(optimizer: object, model: nn.Module) -> None:
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    own = {id(p) for p in model.parameters()}
    others = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in own]
    if others:
        raise ValueError(
            f"optimizer has {len(others)} parameters that are not the model's; give the one that trains it"
        )


def _identity(
    model: nn.Module, setting: Setting, budget: Budget, seed: int, strategies: tuple[str, ...], ranks: Ranks
) -> dict[str, Any]:
    """What must be the same for a finish to go on where another stopped."""
    return {
        "budget": str(budget),
        "seed": seed,
        "strategies": list(strategies),
        "parameters": [[name, list(p.shape)] for name, p in model.named_parameters()],
        "number of examples": len(setting.data.train),
        "batch size": setting.task.batch_size,
        "judge": setting.judge.name,
        "number of processes": ranks.count,
    }
