"""What each of several processes trains on, and whether they have stayed together."""

from dataclasses import replace

from torch import nn

from latephase.distributed import Ranks
from latephase.finishing.data import Examples, share_of
from latephase.study.data import Data
from latephase.study.problems.check import ProblemError


def own_share(data: Data, ranks: Ranks) -> Data:
    """Return the data with this process's share of the training examples; all have as many, see `share_of`.

    Raises:
        ProblemError: If there are fewer examples than processes.
    """
    if ranks.count == 1:
        return data
    try:
        return replace(data, train=share_of("the training data", Examples(data.train), ranks).split)
    except ValueError as error:
        raise ProblemError(str(error)) from error


def stayed_together(model: nn.Module, ranks: Ranks) -> None:
    """Raise RankError if the processes' networks differ: what has trained them is for one process alone."""
    ranks.same("the network, trained by what may be for one process alone", lambda: (list(model.parameters()), ""))
