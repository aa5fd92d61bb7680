"""What a test problem is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from latephase import checks
from latephase.tasks.split import Data
from latephase.tasks.task import Task


@dataclass(frozen=True)
class Metric:
    """What a network is judged by, besides its loss.

    Attributes:
        name: What tables and figures call it, such as `"accuracy"`.
        measure: Maps the outputs for a whole split and its targets to the value.
        higher_is_better: Whether the best value is the highest.
        percent: Whether values are shares of one, to be shown as percentages.

    >>> import torch
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


@dataclass(frozen=True, kw_only=True)
class Problem(Task):
    """A network, its data, and how both optimizers are set for it; `name` is what the command line calls it.

    Attributes:
        build_model: Returns the network with fresh random weights.
        load_data: Returns the data, from the given folder or from the default place.
        epochs: Passes over the training data.
        source: Where data, network and settings come from.
        cpu_threads: How many threads PyTorch should use on a CPU; None leaves it to PyTorch.
        first_phase: The strategy of first order that the training is by, with options such as `adam(lr=0.001)`. By
            default SGD at α.
        metric: What is reported besides the loss.

    Raises:
        ValueError: If a setting is out of range; the message names it.
        TypeError: If it is not a number, likewise.

    Example:
        >>> import torch
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

    build_model: Callable[[], nn.Module]
    load_data: Callable[[Path | None], Data]
    epochs: int
    source: str = ""
    cpu_threads: int | None = None
    first_phase: str = "sgd_constant"
    metric: Metric = ACCURACY

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_integer("epochs", self.epochs)
        if self.cpu_threads is not None:
            checks.positive_integer("cpu_threads", self.cpu_threads)
        for name in ("build_model", "load_data"):
            checks.function(name, getattr(self, name))
