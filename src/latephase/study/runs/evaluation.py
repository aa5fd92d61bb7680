"""How good a network is: one point of a curve."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latephase.distributed import Ranks
from latephase.study.data import Data, Split
from latephase.study.problems import Problem

_CHUNK = 2000  # examples per forward pass


@dataclass(frozen=True)
class Quality:
    """How good a network is, measured in evaluation mode on all the data, without augmentation.

    Where the train loss is not finite, all else is NaN: of outputs that mean nothing a metric would make a number that
    looks like one, or an error.

    Attributes:
        train_loss: The objective on the training data: mean loss plus L2 term, which is what every strategy minimises.
        train_metric: The problem's metric on the training data.
        test_loss: Mean loss over the test data, without the L2 term.
        test_metric: The problem's metric on the test data.
    """

    train_loss: float
    train_metric: float
    test_loss: float
    test_metric: float


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        steps: Steps until then.
        seconds: Training time until then, evaluation excluded.
        gradients: Work until then, in gradients on a batch of SGD's size.
        lr: The learning rate of the last step; NaN where a strategy has none.
        train_loss: As in `Quality`, like all that follow.
        train_metric: See there.
        test_loss: See there.
        test_metric: See there.
    """

    steps: int
    seconds: float
    gradients: float
    lr: float
    train_loss: float
    train_metric: float
    test_loss: float
    test_metric: float


def evaluate(problem: Problem, model: nn.Module, data: Data) -> Quality:
    """Measure `model`, which keeps its parameters and the mode (training or evaluation) of every layer."""
    modes = [(layer, layer.training) for layer in model.modules()]  # a frozen layer may be in evaluation mode for good
    model.eval()
    loss, outputs = _loss_and_outputs(problem, model, data.train)
    objective = loss + problem.l2_term(model)
    train_metric = test_loss = test_metric = math.nan
    if math.isfinite(objective):
        train_metric = problem.metric.measure(outputs, data.train.targets)
        test_loss, outputs = _loss_and_outputs(problem, model, data.test)
        test_metric = problem.metric.measure(outputs, data.test.targets)
    for layer, training in modes:
        layer.training = training
    return Quality(objective, train_metric, test_loss, test_metric)


def evaluate_once(problem: Problem, model: nn.Module, data: Data, ranks: Ranks) -> Quality:
    """Measure the network of the first of several processes, and return that on all of them."""
    return ranks.gather(
        "how good the network is", lambda: evaluate(problem, model, data) if ranks.rank == 0 else _NOT_LOOKED_AT
    )[0]


_NOT_LOOKED_AT = Quality(math.nan, math.nan, math.nan, math.nan)


@torch.no_grad()
def _loss_and_outputs(problem: Problem, model: nn.Module, split: Split) -> tuple[float, Tensor]:
    loss, outputs = 0.0, []
    for start in range(0, len(split), _CHUNK):
        chunk = split.take(slice(start, start + _CHUNK))
        outputs.append(model(chunk.inputs))
        loss += problem.loss(outputs[-1], chunk.targets).item() * len(chunk)
    return loss / len(split), torch.cat(outputs)
