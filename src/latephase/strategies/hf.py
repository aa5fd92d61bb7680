"""Hessian-free steps, with the paper's batch sizes and with the task's."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from latephase.checks import positive_integer
from latephase.optimizer import HessianFree
from latephase.records import StepRecord
from latephase.strategies.options import defaults, plain
from latephase.strategies.strategy import Declaration, Family, Resumable, Settings, Step, TooFewExamplesError
from latephase.strategies.style import Style
from latephase.strategies.trainer import NetworkTrainer
from latephase.tasks.batches import HFBatches, chunks, hessian_free
from latephase.tasks.closure_task import ClosureTask
from latephase.tasks.split import Data, Split
from latephase.tasks.task import Task

PAPER_BATCHES = (256, 1024, 2048, 6144)  # m (Tatzel et al. 2022, Section 3.1)
EVALUATION_BATCH = 1024  # |B̄|, likewise
SAME_BATCH = "hf_same_batch"

# What the optimizer can be told here. Weight decay is the task's, and to print is no part of a result.
OPTIONS = defaults(HessianFree, without=("weight_decay", "verbose"))
_SIZES = ("curvature", "gradient", "evaluation")
_make: Callable[..., HessianFree] = HessianFree


class Parts(NamedTuple):
    """In how many parts, each of which is counted, gradients and losses on B̄ are evaluated."""

    gradient: int
    evaluation: int


@dataclass(frozen=True)
class HF:
    """Hessian-free steps on batches drawn afresh for each.

    The curvature batch and the evaluation batch B̄ are disjoint, unless they are to be the same. The gradient batch
    begins with the curvature batch and is disjoint from B̄ too, as far as the training data suffice.

    Attributes:
        name: What tables and figures call it.
        curvature: Examples for the curvature, m in the paper.
        gradient: Examples for the gradient; m in the paper.
        evaluation: Examples in B̄, 1024 in the paper.
        same: Whether B̄ is B, as in the original method (Martens 2010).
        options: Arguments of `HessianFree` that are not to have their defaults.

    Raises:
        TypeError: For an option that `HessianFree` does not have, or whose type it refuses.
        ValueError: For one whose value it refuses.

    >>> HF("mine", curvature=256, gradient=1000, evaluation=256, options={"damping": 0.1}).settings()["damping"]
    0.1
    """

    name: str
    curvature: int
    gradient: int
    evaluation: int
    same: bool = False
    options: Mapping[str, object] = field(default_factory=dict)
    family: ClassVar[Family] = Family.HESSIAN_FREE

    def __post_init__(self) -> None:
        _make([nn.Parameter(torch.zeros(1))], **self.options)

    def settings(self) -> Settings:
        """See `Strategy.settings`. All options of the optimizer are in it: with other defaults a run is another."""
        options = {name: plain(value) for name, value in {**OPTIONS, **self.options}.items()}
        return {**{name: getattr(self, name) for name in (*_SIZES, "same")}, **options}

    def start(self, task: Task, model: nn.Module, data: Data, generator: torch.Generator) -> Resumable:
        """See `Strategy.start`."""
        optimizer = _make(task.parameter_groups(model), **{"process_group": task.process_group, **self.options})
        draw = hessian_free(
            data,
            curvature=self.curvature,
            gradient=self.gradient,
            evaluation=self.evaluation,
            same=self.same,
            generator=generator,
        )
        return NetworkTrainer(lambda spent: self._step(task, model, optimizer, draw), model, {"optimizer": optimizer})

    def _step(self, task: Task, model: nn.Module, optimizer: HessianFree, draw: Iterator[HFBatches]) -> Step:
        parts = Parts(1, 1)
        if isinstance(task, ClosureTask):
            optimizer.step(task.closure)
        else:
            drawn = next(draw)
            curvature, rest = _pairs(drawn.curvature), _pairs(drawn.gradient_only)
            # The very same list entries where B̄ is B, so that the step knows its losses already.
            gradient = curvature + rest
            evaluation = gradient if self.same else _pairs(drawn.evaluation)
            parts = Parts(len(gradient), len(evaluation))
            optimizer.acc_step(
                model,
                task.loss,
                loss_datalist=evaluation,
                grad_datalist=gradient,
                mvp_datalist=curvature,
                micro_batches_in_memory=len(curvature),
            )
        record = optimizer.last_step
        assert record is not None
        return Step(self._work(record, parts) / task.batch_size, record=record)

    def _work(self, record: StepRecord, parts: Parts) -> float:
        """Return the work in gradients per example."""
        assert record.counts is not None
        # A forward pass is a third of a gradient. The curvature is set up once, and a product costs a gradient.
        judged = record.counts.losses / parts.evaluation * (self.gradient if self.same else self.evaluation)
        gradients = (record.counts.gradients / parts.gradient + record.matrices) * self.gradient
        return judged / 3 + gradients + (1 + record.counts.products) * self.curvature


def _pairs(batch: Split) -> list[tuple[Tensor, Tensor]]:
    return [(chunk.inputs, chunk.targets) for chunk in chunks(batch)]


def hf_equal(task: Task) -> HF:
    """Gradient and curvature on the same examples, in the task's numbers."""
    return HF("hf_equal", task.curvature_batch, task.curvature_batch, task.evaluation_batch)


def hf_large(task: Task) -> HF:
    """The gradient on many more examples than the curvature, in the task's numbers."""
    return HF("hf_large", task.curvature_batch, task.gradient_batch, task.evaluation_batch)


def model_batch(name: str) -> int | None:
    """Return m of a strategy called `hf_m…`, and None for others.

    >>> model_batch("hf_m256"), model_batch("hf_m256(damping=0.1)"), model_batch("hf_large")
    (256, 256, None)
    """
    found = re.match(r"hf_m([1-9][0-9]*)(?=\(|$)", name)
    return int(found[1]) if found else None


def _of_the_paper(name: str, task: Task, examples: int) -> HF:
    """|B| = m and a disjoint B̄: the paper's size, or a quarter of the data where they are few."""
    m, evaluation = model_batch(name), min(EVALUATION_BATCH, examples // 4)
    assert m is not None
    return HF(name, m, m, evaluation)


def _same_batch(name: str, task: Task, examples: int) -> HF:
    m = min(PAPER_BATCHES[-1], examples)
    return HF(name, m, m, min(EVALUATION_BATCH, examples // 4), same=True)


def _auto(name: str, task: Task, examples: int) -> HF:
    """All data in every batch, and the solver that chooses."""
    options = {"solver": "auto"}
    return HF(name, examples, examples, min(EVALUATION_BATCH, examples // 4), same=True, options=options)


def _equal(name: str, task: Task, examples: int) -> HF:
    return hf_equal(task)


def _large(name: str, task: Task, examples: int) -> HF:
    return hf_large(task)


def _declared(
    name: str, style: Style | None, sized: Callable[[str, Task, int], HF], *, default: bool = True, **other: bool
) -> Declaration:
    def build(name: str, task: Task, examples: int, **options: object) -> HF:
        usual = sized(name, task, examples)
        sizes = {key: positive_integer(key, options.pop(key, getattr(usual, key))) for key in _SIZES}
        strategy = HF(name, **sizes, same=usual.same, options={**usual.options, **options})
        return _with_room(strategy, examples)

    return Declaration(name, Family.HESSIAN_FREE, style, build, (*_SIZES, *OPTIONS), default, **other)


def _with_room(strategy: HF, examples: int) -> HF:
    """Return the strategy if its batches find room side by side."""
    m, others = strategy.curvature, 0 if strategy.same else strategy.evaluation
    if m + others > examples:
        raise TooFewExamplesError(
            f"strategy {strategy.name!r} needs {m} examples and {strategy.evaluation} others to judge itself, "
            f"and there are {examples}"
        )
    return strategy


# One family: the larger the batch, the redder and the more solid.
DECLARATIONS = (
    _declared("hf_m256", Style("#cc8400", "#ffd58a", (1.0, 1.1), "^"), _of_the_paper),
    _declared("hf_m1024", Style("#dd6b10", "#ffb054", (3.0, 1.2), "<"), _of_the_paper),
    _declared("hf_m2048", Style("#c8420a", "#ff8a4c", (7.0, 1.5), ">"), _of_the_paper),
    _declared("hf_m6144", Style("#8f1d14", "#ff5c4d", (), "P"), _of_the_paper),
    _declared(SAME_BATCH, Style("#4a2c17", "#d9b48f", (10.0, 1.5, 1.0, 1.5, 1.0, 1.5), "X"), _same_batch),
    _declared("hf_equal", Style("#b57b00", "#f0b429", (1.0, 1.4), "^"), _equal, default=False),
    _declared("hf_large", Style("#d55e00", "#ff7a33", (), "P"), _large),
    _declared("hf_auto", Style("#6a2c91", "#c79bff", (4.0, 1.0, 1.0, 1.0), "*"), _auto, default=False),
    _declared("hf_m", None, _of_the_paper, default=False, numbered=True),
)
