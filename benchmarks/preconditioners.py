"""How many products conjugate gradients take for (G + wd + λ)x = g at the end of a training, by preconditioner and λ.

    python -m benchmarks.preconditioners --problem digits_cnn --out preconditioners

On all training data. Counted until the residual is a hundredth of ‖g‖; what making a preconditioner takes is in the
head of its column. A sketch that is kept is one from the training's end, used some steps of `solver="auto"` later.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.runs import add_arguments, prepared
from latephase import HessianFree
from latephase.curvature import ggn
from latephase.parameters import Parameters
from latephase.study.data import Data
from latephase.study.problems import Problem
from latephase.study.runs.training import Checkpoint
from latephase.tasks.task import add_l2_gradient

RESIDUAL = 1e-2
PROBES = 200  # of the diagonal
SKETCH = 50  # products
LATER = (1, 3, 10)  # steps
MOST = 300  # products
SHARES = (0.1, 0.01, 0.001, 0.0001)  # λ over the largest eigenvalue
Apply = Callable[[Tensor], Tensor]


class Point(NamedTuple):
    """A system: the product with G, the objective's gradient, weight decay, and G's largest eigenvalue."""

    product: Apply
    gradient: Tensor
    decay: Tensor
    largest: float


class Sketch(NamedTuple):
    """G ≈ U diag(values) Uᵀ from products with random vectors (Frangella, Tropp & Udell 2023)."""

    U: Tensor
    values: Tensor

    def at(self, lam: float) -> Apply:
        """The inverse of G + λ up to a factor, as far as the sketch knows it."""
        scale = (self.values[-1] + lam) / (self.values + lam) - 1.0
        return lambda x: x + self.U @ (scale * (self.U.T @ x))


def sketch(point: Point, generator: torch.Generator) -> Sketch:
    """Return G's sketch of `SKETCH` products."""
    normal = torch.randn(len(point.gradient), SKETCH, generator=generator, dtype=point.gradient.dtype)
    omega = torch.linalg.qr(normal).Q
    Y = torch.stack([point.product(v) for v in omega.T], 1)
    shift = 1e-7 * Y.norm()
    Y += shift * omega
    L = torch.linalg.cholesky(omega.T @ Y)
    U, singular, _ = torch.linalg.svd(torch.linalg.solve_triangular(L, Y.T, upper=False).T, full_matrices=False)
    return Sketch(U, (singular.square() - shift).clamp(min=0.0))


def products(point: Point, lam: float, apply: Apply) -> int:
    """Return how many products conjugate gradients take with a preconditioner."""
    x, r = torch.zeros_like(point.gradient), point.gradient.clone()
    z = apply(r)
    p, rz = z.clone(), r @ z
    for count in range(1, MOST):
        Ap = point.product(p) + (point.decay + lam) * p
        alpha = rz / (p @ Ap)
        x += alpha * p
        r -= alpha * Ap
        if float(r.norm()) <= RESIDUAL * float(point.gradient.norm()):
            return count
        z = apply(r)
        p, rz = z + (r @ z) / rz * p, r @ z
    return MOST


def point_of(problem: Problem, model: nn.Module, data: Data) -> Point:
    """Return the system of all training data where the network is."""
    groups = problem.parameter_groups(model)
    flat = Parameters([{**group} for group in groups])
    model.zero_grad()
    problem.forward(model, data.train)[0].backward()
    add_l2_gradient(groups)
    parameters = flat.tensors
    g = flat.join([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
    G = ggn(lambda: problem.forward(model, data.train), parameters)
    v = g / g.norm()
    for _ in range(30):
        v = G @ v
        largest = float(v.norm())
        v /= largest
    return Point(lambda x: G @ x, g, flat.spread("weight_decay"), largest)


def diagonal(point: Point, generator: torch.Generator) -> Tensor:
    """Return G's diagonal as the mean over `PROBES` of v ⊙ Gv."""
    signs = torch.randint(2, (PROBES, len(point.gradient)), generator=generator).to(point.gradient) * 2.0 - 1.0
    return torch.stack([v * point.product(v) for v in signs]).mean(0).clamp(min=0.0)


def second_moments(problem: Problem, model: nn.Module, data: Data) -> Tensor:
    """Return the mean squared gradient of an epoch's batches, to which Adam's second moments tend where it stands."""
    found, parameters = [], [p for group in problem.parameter_groups(model) for p in group["params"]]
    for start in range(0, len(data.train), problem.batch_size):
        model.zero_grad()
        problem.forward(model, data.train.take(slice(start, start + problem.batch_size)))[0].backward()
        found.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).square())
    return torch.stack(found).mean(0)


def column(point: Point, made: Callable[[float], Apply]) -> list[int]:
    """Return the products at all λ."""
    return [products(point, share * point.largest, made(share * point.largest)) for share in SHARES]


def by_diagonal(d: Tensor, power: float = 1.0) -> Callable[[float], Apply]:
    """The preconditioner (d + λ)^power."""
    return lambda lam: lambda x: x / (d + lam) ** power


def columns(problem: Problem, model: nn.Module, data: Data) -> dict[str, list[int]]:
    """Return the table by its columns; takes steps of `solver="auto"` with the network."""
    generator = torch.Generator().manual_seed(0)
    here = point_of(problem, model, data)
    d, v, kept = diagonal(here, generator), second_moments(problem, model, data), sketch(here, generator)
    table = {
        "none": column(here, lambda lam: lambda x: x),
        f"GGN's diagonal ({PROBES})": column(here, by_diagonal(d)),
        "… to the power of ¾": column(here, by_diagonal(d, 0.75)),
        "Adam's second moments v": column(here, by_diagonal(v)),
        "√v": column(here, by_diagonal(v.sqrt())),
        f"Nyström ({SKETCH})": column(here, kept.at),
    }
    opt, taken = HessianFree(problem.parameter_groups(model), solver="auto"), 0
    for steps in LATER:
        while taken < steps:
            opt.step(lambda: problem.forward(model, data.train))
            taken += 1
        there = point_of(problem, model, data)
        table[f"none, step {steps}"] = column(there, lambda lam: lambda x: x)
        table[f"kept, step {steps} (0)"] = column(there, kept.at)
    return table


def main() -> None:
    """Read the arguments, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="digits_cnn")
    add_arguments(parser)
    problem, data, start = prepared(parser.parse_args())
    model = problem.build_model()
    model.load_state_dict(Checkpoint.load(start).network)
    table = columns(problem, copy.deepcopy(model), data)
    lines = [f"| λ | {' | '.join(table)} |", f"| --: |{' --: |' * len(table)}"]
    lines += [f"| {share:g} | {' | '.join(str(c[row]) for c in table.values())} |" for row, share in enumerate(SHARES)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
