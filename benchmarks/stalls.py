"""How often and how late stalls are found: `python -m benchmarks.stalls`.

SGD is simulated where its mean path and its stationary state are known: quadratics in closed form, and logistic
regression by an average over runs. All detectors see the same series. Then two networks of the study are trained.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from latephase import StallDetector
from latephase.stalling.progress import Sample
from latephase.study.problems.digits_cnn import DIGITS_CNN
from latephase.study.problems.friedman1 import FRIEDMAN1
from latephase.study.problems.problem import Problem

WARM_UP, FALSE, ON_TIME = 1000, 1.5, 1.1


@dataclass(frozen=True)
class Series:
    """What SGD left behind in several runs, each of shape [steps, runs].

    Attributes:
        name: What the table calls it.
        excess: Mean of f − f* after each step, as a multiple of what it is at stationarity, shape [steps].
        epoch: After how many steps a scheduler is asked.
    """

    name: str
    loss: Tensor
    drift: Tensor
    length: Tensor
    product: Tensor
    excess: Tensor
    epoch: int = 100

    @property
    def stationary_from(self) -> int:
        """The step from which on the excess stays below 1.1; at least 1,000."""
        late = (self.excess > ON_TIME).nonzero()
        return max(WARM_UP, int(late[-1]) + 1 if len(late) else 0)

    def columns(self) -> tuple[Tensor, ...]:
        """Return the four series."""
        return self.loss, self.drift, self.length, self.product


class Recorder:
    """Collects what a detector reads, of many runs at once; iterates and updates have shape [runs, dimension]."""

    def __init__(self) -> None:
        self.rows: list[tuple[Tensor, ...]] = []
        self._g: Tensor | None = None

    def add(self, loss: Tensor, x: Tensor, u: Tensor, g: Tensor) -> None:
        """Take a step `u` from `x`, by the gradient `g`."""
        length = u.square().sum(1) / 2.0
        product = torch.zeros_like(loss) if self._g is None else (self._g * g).sum(1)
        self._g = g
        self.rows.append((loss, -(x * u).sum(1) - length, length, product))

    def series(self, name: str, excess: Tensor) -> Series:
        """Return what was collected."""
        return Series(name, *(torch.stack(column) for column in zip(*self.rows, strict=True)), excess)


def quadratic(condition: float, noise: float, momentum: float, steps: int, runs: int) -> Series:
    """SGD on ½xᵀHx − ξᵀx, 50 eigenvalues from 1 / condition to 1, at the rate 0.1 (1 − momentum) from 10·1."""
    random = torch.Generator().manual_seed(0)
    H = torch.logspace(-math.log10(condition), 0.0, 50, dtype=torch.float64)
    rate = 0.1 * (1.0 - momentum)
    x, v = torch.full((runs, 50), 10.0, dtype=torch.float64), torch.zeros(runs, 50, dtype=torch.float64)
    mean, mean_v = x[0].clone(), v[0].clone()
    variance = rate * noise**2 * (1.0 + momentum) / (H * (1.0 - momentum) * (2.0 * (1.0 + momentum) - rate * H))
    floor, transient, recorder = (H * variance).sum() / 2.0, [], Recorder()
    for _ in range(steps):
        xi = noise * torch.randn(runs, 50, dtype=torch.float64, generator=random)
        loss = (H * x * x).sum(1) / 2.0 - (xi * x).sum(1)
        g = H * x - xi
        v = momentum * v + g
        recorder.add(loss, x, -rate * v, g)
        x = x - rate * v
        mean_v = momentum * mean_v + H * mean
        mean = mean - rate * mean_v
        transient.append((H * mean * mean).sum() / 2.0)
    name = f"quadratic, κ = {condition:,.0f}, noise {noise:g}, momentum {momentum:g}"
    return recorder.series(name, 1.0 + torch.stack(transient) / floor)


def logistic(rate: float, momentum: float, steps: int, runs: int) -> Series:
    """SGD with batches of 8 of 500 examples, 20 features of scales 1 to 0.1, from 0; f is the mean loss + 5e-4‖x‖²."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(500, 20, dtype=torch.float64, generator=random) * torch.logspace(0, -1, 20).double()
    chance = torch.sigmoid(features @ (3.0 * torch.randn(20, dtype=torch.float64, generator=random)))
    A = features * (2.0 * (torch.rand(500, dtype=torch.float64, generator=random) < chance).double() - 1.0)[:, None]

    def objective(points: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-points @ A.T).mean(-1) + 5e-4 * points.square().sum(-1)

    lowest, x, v = minimum(objective, 20), torch.zeros(runs, 20).double(), torch.zeros(runs, 20).double()
    rate, values, recorder = rate * (1.0 - momentum), [], Recorder()
    for _ in range(steps):
        batch = A[torch.randint(500, (runs, 8), generator=random)]
        margins = torch.einsum("rbd,rd->rb", batch, x)
        g = -torch.einsum("rbd,rb->rd", batch, torch.sigmoid(-margins)) / 8.0 + 1e-3 * x
        v = momentum * v + g
        recorder.add(torch.nn.functional.softplus(-margins).mean(1), x, -rate * v, g)
        x = x - rate * v
        values.append(objective(x).mean() if len(values) % 20 == 0 else values[-1])
    curve = smooth(torch.stack(values) - lowest, steps // 40)
    return recorder.series(f"logistic, rate {rate:g}, momentum {momentum:g}", curve / curve[-steps // 4 :].mean())


def minimum(objective: Callable[[Tensor], Tensor], dimension: int) -> float:
    """The lowest value of a convex function."""
    x = torch.zeros(dimension, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([x], max_iter=1000, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = objective(x)
        value.backward()
        return value

    solver.step(closure)
    return float(objective(x.detach()))


def smooth(values: Tensor, width: int) -> Tensor:
    """The mean of the next `width` values."""
    total = torch.cat([torch.zeros(1, dtype=values.dtype), values.cumsum(0)])
    ends = (torch.arange(len(values)) + width).clamp(max=len(values))
    starts = torch.arange(len(values)).clamp(max=len(values) - width)
    return (total[ends] - total[starts]) / width


@dataclass(frozen=True)
class Training:
    """A training of the study at a constant rate.

    Attributes:
        problem: What is trained.
        lowest: The lowest objective that is known of its network.
        rate: The learning rate.
        seed: Of the weights and the order.
    """

    problem: Problem
    lowest: float
    rate: float
    seed: int

    def run(self, epochs: int) -> tuple[Series, float]:
        """Train by SGD. The excess is over the lowest objective, in multiples of its mean in the last tenth.

        Returns:
            What the detectors see, and the seconds that a step takes.
        """
        torch.manual_seed(self.seed)
        problem, data, model = self.problem, self.problem.load_data(None).train, self.problem.build_model()
        optimizer = torch.optim.SGD(problem.parameter_groups(model), lr=self.rate)  # type: ignore[arg-type]
        reading, rows, curve = StallDetector(("stationarity", "pflug"))._reading, [], []
        start = time.perf_counter()
        for _ in range(epochs):
            for index in torch.randperm(len(data)).split(problem.batch_size):
                batch = data.take(index)
                loss = problem.loss(model(batch.inputs), batch.targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rows.append(reading.read(optimizer, loss.item()))
            with torch.no_grad():
                decay = sum(g["weight_decay"] * p.square().sum() for g in optimizer.param_groups for p in g["params"])
                curve.append(float(problem.loss(model(data.inputs), data.targets) + decay / 2.0))
        seconds = (time.perf_counter() - start) / len(rows)
        columns = (
            torch.tensor([0.0 if v is None else v for v in c]).double()[:, None] for c in zip(*rows[1:], strict=True)
        )
        excess = smooth(torch.tensor(curve, dtype=torch.float64) - self.lowest, 10)
        excess = (excess / excess[-epochs // 10 :].mean()).repeat_interleave(len(rows) // epochs)[1:]
        name = f"{problem.name}, rate {self.rate:g}, seed {self.seed}"
        return Series(name, *columns, excess, len(rows) // epochs), seconds


TRAININGS = (
    # The README's lowest objective of the digits; of the table what L-BFGS comes to in 4,000 iterations.
    *(Training(DIGITS_CNN, 0.0159, rate, seed) for rate, seed in ((0.05, 0), (0.05, 1), (0.2, 0))),
    *(Training(FRIEDMAN1, 0.1467, rate, seed) for rate, seed in ((0.01, 0), (0.01, 1), (0.05, 0))),
)


class Recorded:
    """Stands for the reading of an optimizer."""

    def __init__(self, samples: Iterator[Sample]) -> None:
        self.samples = samples

    def rates_changed(self, optimizer: object) -> bool:
        """Return False."""
        return False

    def read(self, optimizer: object, loss: float) -> Sample:
        """Return the next sample."""
        return next(self.samples)


def ours(**settings: Any) -> Callable[[Series, int], int | None]:
    """A `StallDetector` that is fed with a run of a series; its first alarm."""

    def alarm(series: Series, run: int) -> int | None:
        detector = StallDetector(**settings)
        losses = series.loss[:, run].tolist()
        rows = zip(*(column[:, run].tolist() for column in series.columns()), strict=True)
        detector._reading = Recorded(Sample(*row) for row in rows)  # type: ignore[assignment]
        stand_in: Any = object()
        return next((step for step, loss in enumerate(losses, 1) if detector.update(loss, stand_in)), None)

    return alarm


def plateau(series: Series, run: int) -> int | None:
    """`ReduceLROnPlateau` with torch's defaults, given the mean loss of each epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    losses = series.loss[:, run]
    for epoch in range(len(losses) // series.epoch):
        scheduler.step(losses[epoch * series.epoch : (epoch + 1) * series.epoch].mean())
        if optimizer.param_groups[0]["lr"] < 1.0:
            return (epoch + 1) * series.epoch
    return None


def sasa_plus(series: Series, run: int) -> int | None:
    """SASA+ of statopt: the last eighth of at least 1,000, every 100 steps, 95 %, √n batches of √n, both halves."""
    from scipy.stats import t

    drifts = series.drift[:, run]
    for step in range(8000, len(drifts) + 1, 100):
        size = math.isqrt(step // 8)
        batches = drifts[step - size * size : step].view(size, size).mean(1)
        half_width = float(t.ppf(0.975, size - 1) * batches.std() / math.sqrt(size))
        first, second = (float(half.mean()) for half in batches.tensor_split(2))
        if max(abs(first), abs(second)) < half_width and first * second > 0.0:
            return step
    return None


def slope(series: Series, run: int) -> int | None:
    """SLOPE of statopt: a line through the losses of the last eighth, which does not fall with 95 % confidence."""
    from scipy.stats import linregress

    losses = series.loss[:, run].numpy()
    for step in range(8000, len(losses) + 1, 100):
        part = losses[step - step // 8 : step]
        if linregress(range(len(part)), part, alternative="less").pvalue > 0.05:
            return step
    return None


DETECTORS: dict[str, Callable[[Series, int], int | None]] = {
    "loss (default, margin −1)": ours(),
    "loss, margin 0": ours(margin=0.0),
    "loss, margin 2": ours(margin=2.0),
    "loss, window 0.25": ours(window=0.25),
    "stationarity": ours(tests=("stationarity",)),
    "loss, stationarity": ours(tests=("loss", "stationarity")),
    "pflug": ours(tests=("pflug",)),
    "SASA+ (statopt)": sasa_plus,
    "SLOPE (statopt)": slope,
    "ReduceLROnPlateau": plateau,
}


@dataclass
class Score:
    """Counts of alarms, and when those that were not false came, as multiples of when SGD was stationary."""

    early: int = 0
    runs: int = 0
    missed: int = 0
    to_find: int = 0
    times: tuple[float, ...] = ()

    def add(self, series: Series, alarm: int | None) -> None:
        """Judge one run: no alarm is a miss where the series goes on for four times as long as it took."""
        self.runs += 1
        if alarm is not None and float(series.excess[alarm - 1]) > FALSE:
            self.early += 1
        elif 4 * series.stationary_from <= len(series.excess):
            self.to_find += 1
            self.missed += alarm is None
            self.times += () if alarm is None else (alarm / series.stationary_from,)

    def cells(self) -> str:
        """Return false alarms, misses, and the median time and the 90th percentile."""
        early = f"{self.early / self.runs:.0%}" if self.runs else "–"
        missed = f"{self.missed / self.to_find:.0%}" if self.to_find else "–"
        times = sorted(self.times)
        late = f"{median(times):.1f} ({times[int(0.9 * (len(times) - 1))]:.1f})" if times else "–"
        return f"{early} | {missed} | {late}"


def simulated(steps: int, runs: int) -> Iterator[Series]:
    """All simulations."""
    for momentum in (0.0, 0.9):
        for condition in (1.0, 100.0, 10_000.0):
            for noise in (0.1, 1.0, 10.0):
                yield quadratic(condition, noise, momentum, steps, runs)
        for rate in (0.1, 1.0):
            yield logistic(rate, momentum, steps, runs)


def overhead(tests: tuple[str, ...], parameters: int) -> float:
    """Microseconds of an update with one tensor of parameters."""
    x = torch.nn.Parameter(torch.randn(parameters))
    x.grad = torch.randn(parameters)
    optimizer, detector = torch.optim.SGD([x], lr=1e-6), StallDetector(tests, min_steps=10**9)
    times = []
    for _ in range(200):
        optimizer.step()
        start = time.perf_counter()
        detector.update(1.0, optimizer)
        times.append(time.perf_counter() - start)
    return 1e6 * median(times)


def main() -> None:
    """Run everything and print tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stalls", description=__doc__)
    parser.add_argument("--steps", type=int, default=24_000)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=600, help="of the trainings; 0 leaves them out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    totals = {name: Score() for name in DETECTORS}
    for series in simulated(options.steps, options.runs):
        print(f"\n{series.name}: stationary from step {series.stationary_from:,}")  # noqa: T201
        for name, detector in DETECTORS.items():
            score = Score()
            for run in range(options.runs):
                alarm = detector(series, run)
                score.add(series, alarm)
                totals[name].add(series, alarm)
            print(f"| {name} | {score.cells()} |")  # noqa: T201
    print("\n| detector | false alarms | misses | time of alarm: median (90 %) |\n| :-- | --: | --: | --: |")  # noqa: T201
    for name, score in totals.items():
        print(f"| {name} | {score.cells()} |")  # noqa: T201
    for training in TRAININGS if options.epochs else ():
        series, seconds = training.run(options.epochs)
        print(f"\n{series.name}: stationary from step {series.stationary_from:,}, {1e6 * seconds:.0f} µs a step")  # noqa: T201
        for name, detector in DETECTORS.items():
            alarm = detector(series, 0)
            excess = "" if alarm is None else f"{series.excess[alarm - 1]:.2f}"
            print(f"| {name} | {'–' if alarm is None else f'{alarm:,}'} | {excess} |")  # noqa: T201
    print()  # noqa: T201
    for tests in (("loss",), ("stationarity",), ("pflug",)):
        costs = ", ".join(f"{n:,} parameters {overhead(tests, n):,.0f} µs" for n in (20_000, 1_000_000))
        print(f"an update with tests={tests}: {costs}")  # noqa: T201


if __name__ == "__main__":
    main()
