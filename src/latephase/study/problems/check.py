"""What a problem must be like, seen before anything is trained."""

from torch import Tensor, nn

from latephase.study.data import Data, Split
from latephase.study.problems.problem import Problem


class ProblemError(ValueError):
    """A problem cannot be studied as it is. The message names the argument, its value and what is allowed."""


def check_data(problem: Problem, data: object) -> Data:
    """Return what a problem's ``load_data`` returned.

    Raises:
        ProblemError: If it is not `Data` with examples to train on, enough for a batch, and others to test on.
    """
    if not isinstance(data, Data):
        raise ProblemError(f"load_data of {problem.name!r} must return latephase.study.data.Data, not {_kind(data)}")
    for name in ("train", "test"):
        _check_split(f"{name} of the data of {problem.name!r}", getattr(data, name))
    if problem.batch_size > len(data.train):
        raise ProblemError(
            f"batch_size of {problem.name!r} must be from 1 to {len(data.train)}, the number of training examples, "
            f"not {problem.batch_size}"
        )
    return data


def check_network(problem: Problem) -> None:
    """Build a problem's network, and see that there is something to train.

    Raises:
        ProblemError: If it is none, or has no parameter that is trained.
    """
    network: object = problem.build_model()
    if not isinstance(network, nn.Module):
        raise ProblemError(f"build_model of {problem.name!r} must return a torch.nn.Module, not {_kind(network)}")
    parameters = list(network.parameters())
    if not any(p.requires_grad and p.numel() for p in parameters):
        frozen = f"{len(parameters)} parameters, all of them frozen or empty" if parameters else "none at all"
        raise ProblemError(
            f"build_model of {problem.name!r} must return a network with a parameter to train, "
            f"one that has requires_grad=True, and this has {frozen}"
        )


def _check_split(what: str, split: object) -> None:
    if not isinstance(split, Split):
        raise ProblemError(f"{what} must be a latephase.study.data.Split, not {_kind(split)}")
    for name in ("inputs", "targets"):
        if not isinstance(getattr(split, name), Tensor) or getattr(split, name).dim() == 0:
            raise ProblemError(
                f"{what}: {name} must be a tensor whose first dimension counts the examples, "
                f"not {_kind(getattr(split, name))}"
            )
    if len(split.inputs) != len(split.targets):
        raise ProblemError(f"{what} must have as many inputs as targets, not {len(split.inputs)} and {len(split)}")
    if len(split) == 0:
        raise ProblemError(f"{what} must have at least one example, not 0")


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else type(value).__name__
