"""How good a network is: one point of a curve."""

from dataclasses import dataclass

import torch
from torch import nn

from latephase.study.data import Data, Split
from latephase.study.problems import Problem

_CHUNK = 2000  # examples per forward pass


@dataclass(frozen=True)
class Point:
    """The state of a network at one moment, measured in evaluation mode on all the data.

    Attributes:
        seconds: Training time until then.
        steps: Steps until then.
        train_loss: The objective on the training data: mean loss plus L2 term, which is what every strategy minimises.
        test_loss: Mean loss over the test data, without the L2 term.
        test_accuracy: Fraction of the test data classified correctly.
    """

    seconds: float
    steps: int
    train_loss: float
    test_loss: float
    test_accuracy: float


def evaluate(problem: Problem, model: nn.Module, data: Data, *, seconds: float, steps: int) -> Point:
    """Measure ``model``, which keeps its mode (training or evaluation) and its parameters."""
    was_training = model.training
    model.eval()
    train_loss, _ = _loss_and_accuracy(problem, model, data.train)
    test_loss, test_accuracy = _loss_and_accuracy(problem, model, data.test)
    model.train(was_training)
    return Point(seconds, steps, train_loss + problem.l2_term(model), test_loss, test_accuracy)


@torch.no_grad()
def _loss_and_accuracy(problem: Problem, model: nn.Module, split: Split) -> tuple[float, float]:
    loss = correct = 0.0
    for start in range(0, len(split), _CHUNK):
        chunk = split.take(slice(start, start + _CHUNK))
        outputs = model(chunk.inputs)
        loss += problem.loss(outputs, chunk.targets).item() * len(chunk)
        correct += (outputs.argmax(dim=1) == chunk.targets).sum().item()
    return loss / len(split), correct / len(split)
