"""The test problems, one file each, and yours."""

from difflib import get_close_matches

from latephase.study.problems.burgers import BURGERS
from latephase.study.problems.cifar10_3c3d import CIFAR10_3C3D
from latephase.study.problems.cifar100_allcnnc import CIFAR100_ALLCNNC
from latephase.study.problems.convection import CONVECTION
from latephase.study.problems.digits_cnn import DIGITS_CNN
from latephase.study.problems.fmnist_2c2d import FMNIST_2C2D
from latephase.study.problems.fmnist_allcnn import FMNIST_ALLCNN
from latephase.study.problems.friedman1 import FRIEDMAN1
from latephase.study.problems.mnist_autoencoder import MNIST_AUTOENCODER, MNIST_AUTOENCODER_RELU
from latephase.study.problems.morse_cluster import MORSE_CLUSTER
from latephase.study.problems.own import build_own
from latephase.study.problems.poisson_2d import POISSON_2D_10K, POISSON_2D_116K, POISSON_2D_257
from latephase.study.problems.poisson_pinn import POISSON_PINN
from latephase.study.problems.problem import Metric, Problem
from latephase.study.problems.reaction import REACTION
from latephase.study.problems.svhn_wrn164 import SVHN_WRN164
from latephase.study.problems.wave import WAVE

__all__ = ["PROBLEMS", "Metric", "Problem", "find_problem"]

_PAPERS = (CIFAR10_3C3D, CIFAR100_ALLCNNC, SVHN_WRN164)
_RUN_ANYWHERE = (DIGITS_CNN, FMNIST_2C2D, FMNIST_ALLCNN, POISSON_PINN)
_EQUATIONS = (POISSON_2D_257, POISSON_2D_10K, POISSON_2D_116K, CONVECTION, REACTION, WAVE, BURGERS)
_FITS = (MNIST_AUTOENCODER, MNIST_AUTOENCODER_RELU, FRIEDMAN1, MORSE_CLUSTER)

PROBLEMS = {problem.name: problem for problem in _PAPERS + _RUN_ANYWHERE + _EQUATIONS + _FITS}


def find_problem(name: str) -> Problem:
    """Return the problem called `name`.

    Args:
        name: One of `PROBLEMS`, or a function that builds one, called without arguments:
            `path/to/my_problem.py:build` or `package.module:build`.

    Raises:
        ValueError: If there is none; the message names the nearest and all there are.

    >>> find_problem("digits_cnn").batch_size
    32
    """
    if name in PROBLEMS:
        return PROBLEMS[name]
    if ":" in name:
        return build_own(name)
    nearest = get_close_matches(name, PROBLEMS, cutoff=0.3)
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    if name.endswith(".py"):
        hint = f" Did you mean {name + ':FUNCTION'!r}, with the function that builds it?"
    raise ValueError(f"unknown problem {name!r}.{hint} There are: {', '.join(PROBLEMS)}.")
