"""Data for steps: disjoint batches for gradient, curvature and evaluation, drawn afresh for each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from latephase.checks import non_negative_integer, positive_integer
from latephase.micro_batches import Pair

Indices: TypeAlias = list[int]


class StepData(NamedTuple):
    """What one step takes, as lists of micro-batches (inputs, targets), in the order of `acc_step`'s arguments.

    Attributes:
        loss_datalist: The evaluation batch B̄.
        grad_datalist: The batch for the gradient; it begins with those for the curvature, or is one of them.
        mvp_datalist: The batch for the curvature.
    """

    loss_datalist: list[Pair]
    grad_datalist: list[Pair]
    mvp_datalist: list[Pair]


class Sizes(NamedTuple):
    """How many examples the batches have; `evaluation` is 0 where B̄ is the gradient's batch."""

    gradient: int
    curvature: int
    evaluation: int


class Plan(NamedTuple):
    """Which examples each step takes."""

    examples: int
    sizes: Sizes
    micro_batch: int
    seed: int

    def parts(self, step: int) -> tuple[list[Indices], list[Indices], list[Indices]]:
        """The indices of a step in micro-batches: for B̄ only, for curvature and gradient, for the gradient only."""
        mixed = random.Random(f"{self.seed}, {step}").getrandbits(32)  # PyTorch looks at 32 bits of a seed
        order = torch.randperm(self.examples, generator=torch.Generator().manual_seed(mixed))
        gradient, curvature, evaluation = self.sizes
        parts = order[self.examples - evaluation :], order[:curvature], order[curvature:gradient]
        judge, shared, rest = ([list(p.tolist()) for p in part.split(self.micro_batch) if len(p)] for part in parts)
        return judge, shared, rest


class batches:  # noqa: N801 — used like a function
    """Data for Hessian-free steps, for ever: drawn at random for each step, the evaluation batch disjoint (Section 2).

    Step k's examples depend on `seed` and k alone. So the state is one number, and a resumed run draws what the
    undisturbed one would have drawn. What is random inside the data set (augmentation) is none of this.

    Args:
        dataset: A map-style data set of pairs (inputs, targets), or a pair of tensors with a common first dimension.
        gradient: Examples for the gradient. Default: all that are not for the evaluation.
        curvature: Examples for the curvature, some of those for the gradient. Default: as many.
        evaluation: Examples for B̄, none of which is for gradient or curvature. Default: B̄ is the gradient's batch,
            for `solver="auto"` on all data.
        micro_batch: Most examples per forward pass.
        seed: ≥ 0.
        num_workers: Processes that load data ahead of time, see `torch.utils.data.DataLoader`.

    Raises:
        TypeError: If a size is no integer, or the data set has no length or cannot be indexed.
        ValueError: If there are too few examples, or tensors of different lengths.

    Example:
        >>> from latephase import HessianFree
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> x = torch.linspace(-1.0, 1.0, 100).unsqueeze(1)
        >>> model, loss_func = torch.nn.Linear(1, 1), torch.nn.MSELoss()
        >>> opt = HessianFree(model.parameters(), damping=0.01)
        >>> data = batches((x, 3.0 * x), gradient=60, curvature=20, evaluation=30)
        >>> for _ in range(5):
        ...     loss = opt.acc_step(model, loss_func, *next(data))
        >>> loss < 0.001
        True
        >>> data.state_dict()
        {'drawn': 5}
    """

    def __init__(
        self,
        dataset: Dataset[Any] | tuple[Tensor, Tensor],
        *,
        gradient: int | None = None,
        curvature: int | None = None,
        evaluation: int | None = None,
        micro_batch: int = 2048,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        self._dataset = _indexable(dataset)
        examples = len(self._dataset)  # type: ignore[arg-type]
        self._plan = Plan(
            examples,
            _sizes(examples, gradient, curvature, evaluation),
            positive_integer("micro_batch", micro_batch),
            non_negative_integer("seed", seed),
        )
        self._workers = non_negative_integer("num_workers", num_workers)
        self._drawn = 0
        self._loaded: Iterator[Pair] | None = None

    def __iter__(self) -> batches:
        """Return itself."""
        return self

    def __next__(self) -> StepData:
        """Draw the data of the next step."""
        if self._loaded is None:
            self._loaded = iter(self._loader())
        judge, shared, rest = ([next(self._loaded) for _ in part] for part in self._plan.parts(self._drawn))
        self._drawn += 1
        both = shared + rest
        return StepData(judge or both, both, shared)

    def state_dict(self) -> dict[str, int]:
        """Return how many steps' data have been drawn."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state of the same data, sizes and seed.

        Raises:
            ValueError: If it is none of `state_dict`.
        """
        if set(state) != {"drawn"}:
            raise ValueError(f"a state of latephase.batches has the one entry 'drawn', not {sorted(state)}")
        self._drawn, self._loaded = non_negative_integer("drawn", state["drawn"]), None

    def _loader(self) -> DataLoader[Any]:
        """Loads all micro-batches from the next step's on, one after the other."""
        order: Any = _InOrder(self._plan, self._drawn)
        if isinstance(self._dataset, TensorDataset):  # takes a list of indices
            return DataLoader(self._dataset, batch_size=None, sampler=order, num_workers=self._workers)
        return DataLoader(self._dataset, batch_sampler=order, num_workers=self._workers)


@dataclass(frozen=True)
class _InOrder:
    """The indices of micro-batches, step by step. It knows nothing of who iterates, who would else outlive its use."""

    plan: Plan
    first: int

    def __iter__(self) -> Iterator[Indices]:
        for step in count(self.first):
            for part in self.plan.parts(step):
                yield from part


def _indexable(dataset: Dataset[Any] | tuple[Tensor, Tensor]) -> Dataset[Any]:
    if isinstance(dataset, tuple) and all(isinstance(t, Tensor) for t in dataset):
        lengths = [len(t) if t.dim() else 0 for t in dataset]
        if len(set(lengths)) != 1:
            raise ValueError(f"inputs and targets must have a common first dimension, not lengths {lengths}")
        return TensorDataset(*dataset)
    if isinstance(dataset, tuple) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"dataset must be a pair of tensors or a data set with a length and indices, not {type(dataset).__name__}"
        )
    return dataset


def _sizes(n: int, gradient: int | None, curvature: int | None, evaluation: int | None) -> Sizes:
    judge = 0 if evaluation is None else positive_integer("evaluation", evaluation)
    steps = n - judge if gradient is None else positive_integer("gradient", gradient)
    curved = steps if curvature is None else positive_integer("curvature", curvature)
    if not 1 <= steps <= n - judge:
        raise ValueError(f"disjoint gradient ({steps}) and evaluation ({judge}) batches need more than {n} examples")
    if curved > steps:
        raise ValueError(f"curvature ({curved}) must be ≤ gradient ({steps}): its examples are some of the gradient's")
    return Sizes(steps, curved, judge)
