"""Problems of one's own: built by a function in a file or a module."""

import inspect

from latephase.study.own import find_function
from latephase.study.problems.problem import Problem
from latephase.study.threads import threads


def build_own(name: str) -> Problem:
    """Return what a function returns when it is called without arguments.

    What goes wrong inside the file, the module or the function is raised as it is. The number of threads that they
    leave PyTorch with is put back: that of the runs is `Problem.cpu_threads`.

    Args:
        name: ``path/to/my_problem.py:build`` or ``package.module:build``.

    Raises:
        ValueError: If there is no such file, module or function, or it does not return a `Problem`.
    """
    with threads(None):
        build = find_function(name)
        try:
            inspect.signature(build).bind()
        except TypeError as error:
            raise ValueError(f"{name} cannot be called without arguments ({error})") from error
        problem = build()
    if not isinstance(problem, Problem):
        raise ValueError(f"{name} returned {type(problem).__name__}, expected latephase.study.problems.Problem")
    return problem
