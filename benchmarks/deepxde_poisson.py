"""`latephase.integrations.deepxde.finish` beside DeepXDE's own L-BFGS and NNCG, from the same Adam start.

    python -m benchmarks.deepxde_poisson --seconds 20 --seeds 5 --float float64

The problem is DeepXDE's example `Poisson_Dirichlet_1d`: −u'' = π² sin(πx) on [−1, 1], u = 0 at the ends, 16 points
inside, a network of three layers of 50, 10,000 steps of Adam. The error is relative, in L2, at 1,000 points. A way
that fails with an error is counted as failed, and the others go on.
"""

import argparse
import copy
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence

os.environ.setdefault("DDE_BACKEND", "pytorch")

import deepxde as dde
import numpy as np
import torch

from latephase.integrations.deepxde import finish

WAYS = ("Adam", "L-BFGS", "NNCG", "latephase")
X = np.linspace(-1.0, 1.0, 1000)[:, None]


def solution(x: np.ndarray) -> np.ndarray:
    """u(x) = sin(πx)."""
    return np.sin(np.pi * x)


def pde(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The residual."""
    return -dde.grad.hessian(y, x) - np.pi**2 * torch.sin(np.pi * x)


def build() -> dde.Model:
    """The example's model."""
    geometry = dde.geometry.Interval(-1, 1)
    ends = dde.icbc.DirichletBC(geometry, solution, lambda _, on_boundary: on_boundary)
    data = dde.data.PDE(geometry, pde, ends, 16, 2, solution=solution, num_test=100)
    return dde.Model(data, dde.nn.FNN([1, 50, 50, 50, 1], "tanh", "Glorot uniform"))


def run(way: str, start: dict[str, torch.Tensor], model: dde.Model, seconds: float) -> tuple[float, float, float]:
    """Go on from the start; return loss, error and the seconds it took."""
    model.net.load_state_dict(copy.deepcopy(start))
    model.compile("adam", lr=1e-3, verbose=0)
    begin = time.perf_counter()
    timer = dde.callbacks.Timer(seconds / 60)
    if way == "latephase":
        finish(model, budget=f"{seconds}s", progress=False)
    elif way == "Adam":
        model.train(iterations=10**9, callbacks=[timer], verbose=0, display_every=10**9)
    elif way == "L-BFGS":
        dde.optimizers.set_LBFGS_options(maxiter=10**7, ftol=0.0, gtol=0.0)
        model.compile("L-BFGS", verbose=0)
        model.train(callbacks=[timer], verbose=0, display_every=10**9)
    else:
        model.compile("NNCG", verbose=0)
        model.train(iterations=10**9, callbacks=[timer], verbose=0, display_every=10**9)
    spent = time.perf_counter() - begin
    _, losses = model.outputs_losses_train(model.train_state.X_train, model.train_state.y_train, None)
    error = np.linalg.norm(model.predict(X) - solution(X)) / np.linalg.norm(solution(X))
    return float(losses.sum().detach()), float(error), spent


def tried(
    way: str, start: dict[str, torch.Tensor], model: dde.Model, seconds: float
) -> tuple[float, float, float] | str:
    """The same, or in words why it failed."""
    try:
        return run(way, start, model, seconds)
    except RuntimeError as error:  # NNCG factorises a matrix that need not be positive definite
        return f"failed: {error}"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.2g} to {max(values):.2g})"


def main() -> None:
    """Read the arguments, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--adam", type=int, default=10_000, help="steps of the start")
    parser.add_argument("--float", choices=["float32", "float64"], default="float64")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dde.config.set_default_float(options.float)
    results: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    for seed in range(options.seeds):
        dde.config.set_random_seed(seed)
        model = build()
        model.compile("adam", lr=1e-3, verbose=0)
        model.train(iterations=options.adam, verbose=0, display_every=10**9)
        start = copy.deepcopy(model.net.state_dict())
        for way in WAYS:
            outcome = tried(way, start, model, options.seconds)
            sys.stderr.write(f"{seed} {way} {outcome}\n")
            if not isinstance(outcome, str):
                results[way].append(outcome)
    sys.stdout.write(table(results, options.seeds, f"{options.float}, {options.seconds:g} s") + "\n")


def table(results: Mapping[str, Sequence[tuple[float, float, float]]], seeds: int, title: str) -> str:
    """Return a row for each way: medians and ranges of those runs that came to an end, and how many did not."""
    lines = [f"| {title} | loss | error | seconds | failed |", "| :-- | --: | --: | --: | --: |"]
    for way, rows in results.items():
        cells = [_spread(values) for values in zip(*rows, strict=True)] if rows else ["", "", ""]
        lines.append(f"| {way} | {' | '.join(cells)} | {seeds - len(rows)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
