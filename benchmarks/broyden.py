"""What an iteration of a quasi-Newton method takes beside its gradient, and a peer's.

    python -m benchmarks.broyden --parameters 500 1000 3441

The objective is a quadratic with a diagonal Hessian, whose gradient costs next to nothing, so that what is timed is the
direction and the update of the approximation of the inverse Hessian. Ours is `Walk` of `solver="hybrid"`, which adds
updates sixteen at a time; beside it the same with each update added as it comes (`update`, as in the study's
`ssbroyden`), with 300 vectors and more as in `solver="quasi-newton"`, and SciPy's BFGS. Before, ours are held against
each other.
"""

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from latephase.parts.broyden import Dense, Inverse, LowRank, change, update
from latephase.parts.walk import Walk
from latephase.parts.wolfe import Place

WAYS = ("sixteen at a time", "one by one", "300 vectors", "SciPy's BFGS")
VECTORS = 300
AGREED = 1e-9


def curvature(parameters: int) -> Tensor:
    """The diagonal of the quadratic's Hessian: six orders of magnitude."""
    return torch.logspace(-3, 3, parameters, dtype=torch.float64)


def disagreement(parameters: int, updates: int = 40) -> float:
    """Return by how much ways of keeping the same updates differ at most, relative to the matrix."""
    h, generator = curvature(parameters), torch.Generator().manual_seed(0)
    apart, H = Dense(torch.eye(parameters, dtype=torch.float64)), torch.eye(parameters, dtype=torch.float64)
    few = LowRank(H[:, :0], H[:0, :0], 1.0, updates)
    for _ in range(updates):
        s = torch.randn(parameters, generator=generator, dtype=torch.float64)
        y = h * s
        sBs = float(s @ y)
        apart.add(change(s, y, apart.times(y), sBs))
        few.add(change(s, y, few.times(y), sBs))
        update(H, s, y, sBs)
    columns = torch.stack([few.times(e) for e in torch.eye(parameters, dtype=torch.float64)])
    return max(float((other - H).norm() / H.norm()) for other in (apart.dense(), columns))


def held_apart(parameters: int, iterations: int) -> float:
    """Return the seconds of an iteration with a dense matrix."""
    return walking(Dense(torch.eye(parameters, dtype=torch.float64)), parameters, iterations)


def of_vectors(parameters: int, iterations: int) -> float:
    """Return the seconds of an iteration with 300 vectors at first, or one for each parameter."""
    U = torch.eye(parameters, min(VECTORS, parameters), dtype=torch.float64)
    M = torch.zeros(U.shape[1], U.shape[1], dtype=torch.float64)
    return walking(LowRank(U, M, 1.0, iterations + 1), parameters, iterations)


def walking(inverse: Inverse, parameters: int, iterations: int) -> float:
    """Return the seconds of an iteration of `Walk`, of which its line search takes next to nothing."""
    h = curvature(parameters)

    def at(p: Tensor) -> Place:
        r = p - 1.0
        return Place(p, 0.5 * float(r @ (h * r)), h * r)

    walk = Walk(at(torch.zeros_like(h)), inverse)
    return timed(lambda: walk.advance(at), iterations)


def one_by_one(parameters: int, iterations: int) -> float:
    """Return the seconds of a direction and an update, added at once."""
    h = curvature(parameters)
    H, s = torch.eye(parameters, dtype=torch.float64), torch.ones_like(h)
    y = h * s

    def iteration() -> None:
        update(H, s, y, float(s @ y))
        H.mv(y)

    return timed(iteration, iterations)


def scipys(parameters: int, iterations: int) -> float:
    """Return the seconds of an iteration of `scipy.optimize.minimize(method="BFGS")`."""
    h = curvature(parameters).numpy()

    def at(p: np.ndarray) -> tuple[float, np.ndarray]:
        r = p - 1.0
        return 0.5 * float(r @ (h * r)), h * r

    begin = time.perf_counter()
    result = minimize(at, np.zeros(parameters), jac=True, method="BFGS", options={"maxiter": iterations})
    return (time.perf_counter() - begin) / result.nit


def timed(iteration: Callable[[], object], iterations: int) -> float:
    """Return the seconds of an iteration, after a first one."""
    iteration()
    begin = time.perf_counter()
    for _ in range(iterations):
        iteration()
    return (time.perf_counter() - begin) / iterations


def main() -> int:
    """Read the arguments, compare, measure, print the table; 1 if ways of keeping updates disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, nargs="+", default=[500, 1000, 3441])
    parser.add_argument("--iterations", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [f"| milliseconds | {' | '.join(WAYS)} |", "| :-- | --: | --: | --: | --: |"]
    for parameters in options.parameters:
        apart = disagreement(parameters)
        if not apart < AGREED:
            sys.stderr.write(f"at {parameters} parameters the ways differ by {apart:.1e}\n")
            return 1
        means = (
            held_apart(parameters, options.iterations),
            one_by_one(parameters, options.iterations),
            of_vectors(parameters, options.iterations),
            scipys(parameters, max(2, options.iterations // 8)),
        )
        lines.append(f"| {parameters:,} parameters | {' | '.join(f'{1e3 * mean:.3g}' for mean in means)} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
