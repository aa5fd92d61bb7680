"""What a test problem is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from latephase import checks
from latephase.study.data import Data


@dataclass(frozen=True)
class Metric:
    """What a network is judged by, besides its loss.

    Attributes:
        name: What tables and figures call it, such as `"accuracy"`.
        measure: Maps the outputs for a whole split and its targets to the value.
        higher_is_better: Whether the best value is the highest.
        percent: Whether values are shares of one, to be shown as percentages.

    >>> error = Metric("largest error", lambda outputs, targets: (outputs - targets).abs().max().item(), False)
    >>> error.measure(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    0.5
    """

    name: str
    measure: Callable[[Tensor, Tensor], float]
    higher_is_better: bool = True
    percent: bool = False


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of examples whose largest output, of shape [N, classes], is the target's."""
    return (outputs.argmax(dim=1) == targets).double().mean().item()


ACCURACY = Metric("accuracy", accuracy, percent=True)


class Group(TypedDict):
    """A parameter group, as optimizers take them."""

    params: list[nn.Parameter]
    weight_decay: float


@dataclass(frozen=True)
class Problem:
    """A network, its data, and how both optimizers are set for it.

    Attributes:
        name: What the command line calls it.
        build_model: Returns the network with fresh random weights.
        load_data: Returns the data, from the given folder or from the default place.
        lr: SGD's learning rate α.
        batch_size: SGD's batch size, and that of all optimizers that step on one gradient.
        epochs: Passes over the training data.
        weight_decay: The factor wd of the L2 term ½·wd·‖θ‖², which covers weights but not biases.
        curvature_batch: Examples for the curvature in a step of the strategies `hf_equal` and `hf_large`.
        gradient_batch: Examples for the gradient in a step of `hf_large`.
        evaluation_batch: Examples for the losses by which these steps judge themselves.
        source: Where data, network and settings come from.
        cpu_threads: How many threads PyTorch should use on a CPU; None leaves it to PyTorch.
        first_phase: The strategy of first order that the training is by, with options such as `adam(lr=0.001)`. By
            default SGD at α.
        loss: Maps (outputs, targets) to the mean loss, without the L2 term.
        metric: What is reported besides the loss.

    Raises:
        ValueError: If a setting is out of range; the message names it.
        TypeError: If it is not a number, likewise.

    Example:
        >>> from latephase.study.data import Split
        >>> x = torch.linspace(-1.0, 1.0, 300).unsqueeze(1)
        >>> data = Data(train=Split(x[::2], x[::2] ** 2), test=Split(x[1::2], x[1::2] ** 2))
        >>> problem = Problem(
        ...     name="parabola",
        ...     build_model=lambda: nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)),
        ...     load_data=lambda folder: data,
        ...     lr=0.1,
        ...     batch_size=10,
        ...     epochs=20,
        ...     weight_decay=0.0,
        ...     curvature_batch=50,
        ...     gradient_batch=100,
        ...     evaluation_batch=50,
        ...     loss=nn.functional.mse_loss,
        ...     metric=Metric("loss", lambda outputs, targets: (outputs - targets).square().mean().item(), False),
        ... )
        >>> [len(group["params"]) for group in problem.parameter_groups(problem.build_model())]
        [2, 2]
    """

    name: str
    build_model: Callable[[], nn.Module]
    load_data: Callable[[Path | None], Data]
    lr: float
    batch_size: int
    epochs: int
    weight_decay: float
    curvature_batch: int
    gradient_batch: int
    evaluation_batch: int
    source: str = ""
    cpu_threads: int | None = None
    first_phase: str = "sgd_constant"
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    metric: Metric = ACCURACY

    def __post_init__(self) -> None:
        if checks.non_negative("lr", self.lr) == 0.0:
            raise ValueError(f"lr must be > 0, not {self.lr!r}")
        checks.non_negative("weight_decay", self.weight_decay)
        for name in ("batch_size", "epochs", "curvature_batch", "gradient_batch", "evaluation_batch"):
            checks.positive_integer(name, getattr(self, name))
        if self.cpu_threads is not None:
            checks.positive_integer("cpu_threads", self.cpu_threads)
        for name in ("build_model", "load_data", "loss"):
            checks.function(name, getattr(self, name))

    def parameter_groups(self, model: nn.Module) -> list[Group]:
        """Return the parameters to train in two groups: weights with weight decay, biases without.

        A weight is what has more than one dimension; so the scales of normalisation layers count as biases. Frozen
        parameters (`requires_grad=False`) are in neither.
        """
        parameters = [p for p in model.parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]

    @torch.no_grad()
    def l2_term(self, model: nn.Module) -> float:
        """Return ½·wd·‖θ‖² over the weights to train: what no strategy can change is not part of the objective."""
        groups = self.parameter_groups(model)
        return sum(0.5 * g["weight_decay"] * p.square().sum().item() for g in groups for p in g["params"])

    @torch.no_grad()  # else gradients would know that they depend on the weights, and optimizers might differentiate it
    def add_l2_gradient(self, weights: Sequence[nn.Parameter]) -> None:
        """Add the gradient of the L2 term to those of the weights; where the loss does not depend on one it is all."""
        for p in weights:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in weights if p.grad is not None]
        if grads:
            torch._foreach_add_(grads, list(weights), alpha=self.weight_decay)
