"""What strategies train: a network's loss and how steps on it are set."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from latephase import checks
from latephase.distributed import Ranks, find_ranks
from latephase.tasks.split import Split


class Group(TypedDict):
    """A parameter group, as optimizers take them."""

    params: list[nn.Parameter]
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """A loss to minimise, and how steps are set for it.

    Attributes:
        name: What messages call it.
        lr: SGD's learning rate α.
        batch_size: SGD's batch size, and that of all optimizers that step on one gradient.
        weight_decay: The factor wd of the L2 term ½·wd·‖θ‖², which covers weights but not biases.
        curvature_batch: Examples for the curvature in a step of the strategies `hf_equal` and `hf_large`.
        gradient_batch: Examples for the gradient in a step of `hf_large`.
        evaluation_batch: Examples for the losses by which these steps judge themselves.
        loss: Maps (outputs, targets) to the mean loss, without the L2 term.
        process_group: The processes that train together, each on examples of its own and as many of them, on the mean
            of their losses: None for this one alone, `"world"`, or a group of `torch.distributed`.

    Raises:
        ValueError: If a setting is out of range; the message names it.
        TypeError: If it is not a number, likewise.

    >>> sizes = dict(batch_size=10, curvature_batch=50, gradient_batch=100, evaluation_batch=50)
    >>> task = Task(name="line", lr=0.1, weight_decay=0.01, loss=nn.functional.mse_loss, **sizes)
    >>> [len(group["params"]) for group in task.parameter_groups(nn.Linear(1, 1))]
    [1, 1]
    """

    name: str
    lr: float
    batch_size: int
    weight_decay: float
    curvature_batch: int
    gradient_batch: int
    evaluation_batch: int
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    process_group: object | None = None

    def __post_init__(self) -> None:
        if checks.non_negative("lr", self.lr) == 0.0:
            raise ValueError(f"lr must be > 0, not {self.lr!r}")
        checks.non_negative("weight_decay", self.weight_decay)
        for name in ("batch_size", "curvature_batch", "gradient_batch", "evaluation_batch"):
            checks.positive_integer(name, getattr(self, name))
        checks.function("loss", self.loss)

    def ranks(self, device: torch.device) -> Ranks:
        """Return the processes that train together, for one exchange, whose network is on `device`."""
        return find_ranks(self.process_group, device, by_hand=True)

    def forward(self, model: nn.Module, batch: Split) -> tuple[Tensor, Tensor]:
        """Return the mean loss on a batch, without the L2 term, and the outputs that it is a function of."""
        outputs = model(batch.inputs)
        return self.loss(outputs, batch.targets), outputs

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
        groups = [group for group in self.parameter_groups(model) if group["weight_decay"]]
        return sum(0.5 * g["weight_decay"] * p.square().sum().item() for g in groups for p in g["params"])


@torch.no_grad()  # else gradients would know that they depend on the weights, and optimizers might differentiate it
def add_l2_gradient(groups: Iterable[Group]) -> None:
    """Add the gradient of the L2 term to those of the weights; where the loss does not depend on one it is all."""
    for group in groups:
        if not group["weight_decay"]:
            continue
        for p in group["params"]:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in group["params"] if p.grad is not None]
        if grads:
            torch._foreach_add_(grads, [*group["params"]], alpha=group["weight_decay"])
