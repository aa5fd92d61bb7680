"""The test problems, one file each."""

from difflib import get_close_matches

from latephase.study.problems.digits_cnn import DIGITS_CNN
from latephase.study.problems.fmnist_allcnn import FMNIST_ALLCNN
from latephase.study.problems.problem import Problem

__all__ = ["PROBLEMS", "Problem", "find_problem"]

PROBLEMS = {problem.name: problem for problem in (DIGITS_CNN, FMNIST_ALLCNN)}


def find_problem(name: str) -> Problem:
    """Return the problem called ``name``.

    Raises:
        ValueError: If there is none; the message names the nearest and all there are.
    """
    if name in PROBLEMS:
        return PROBLEMS[name]
    nearest = get_close_matches(name, PROBLEMS, cutoff=0.3)
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    raise ValueError(f"unknown problem {name!r}.{hint} There are: {', '.join(PROBLEMS)}.")
