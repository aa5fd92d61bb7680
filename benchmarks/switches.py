"""What λ a second phase should begin at: the default of 1, or the mean of Adam's second moments.

    python -m benchmarks.switches --seeds 3

Adam, then as many steps of `HessianFree` with 50 CG iterations, from the same switch; both as one `PhaseSwitch`.
"""

import argparse
import statistics
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.runs import median_and_range
from latephase import HessianFree, PhaseSwitch, keep_freed_memory
from latephase.study.data import Data
from latephase.study.problems import find_problem
from latephase.study.runs.evaluation import evaluate

ITERATIONS = 50


@dataclass(frozen=True)
class Setting:
    """A training in two phases.

    Attributes:
        problem: What is trained.
        epochs: Of Adam at 0.001.
        batch: Examples in a step of the second phase, which is judged on as many others; None for all, for both.
        steps: In the second phase.
    """

    problem: str
    epochs: int
    batch: int | None
    steps: int


SETTINGS = (
    Setting("digits_cnn", 30, 512, 16),
    Setting("friedman1", 20, 1024, 16),
    Setting("poisson_pinn", 3000, None, 20),
    Setting("benchmarks/equations.py:burgers", 800, None, 6),
)


def run(setting: Setting, data: Data, seed: int, *, carry_over: bool) -> tuple[float, float, float]:
    """Train in two phases.

    Returns:
        The objective at the switch, λ then, and the objective at the end.
    """
    problem = find_problem(setting.problem)
    torch.manual_seed(seed)
    model = problem.build_model()
    adam = torch.optim.Adam(problem.parameter_groups(model), lr=1e-3)  # type: ignore[arg-type]
    hf = HessianFree(problem.parameter_groups(model), cg_max_iter=ITERATIONS)  # type: ignore[arg-type]
    switch = PhaseSwitch(adam, hf, setting.epochs * -(-len(data.train) // problem.batch_size), carry_over=carry_over)

    def loss_on(index: Tensor) -> tuple[Tensor, Tensor]:
        batch = data.train.take(index)
        switch.zero_grad()
        outputs = model(batch.inputs)
        loss = problem.loss(outputs, batch.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss, outputs

    while switch.phase == "first":
        for index in torch.randperm(len(data.train)).split(problem.batch_size):
            switch.step(lambda index=index: loss_on(index))  # type: ignore[misc]
    before, damping = evaluate(problem, model, data).train_loss, float(hf.param_groups[0]["damping"])
    for _ in range(setting.steps):
        order = torch.randperm(len(data.train))
        size = setting.batch or len(order)
        model_batch, judged_on = order[:size], order[size : 2 * size] if setting.batch else order
        switch.step(lambda b=model_batch: loss_on(b), evaluate=lambda b=judged_on: loss_on(b))  # type: ignore[misc]
    return before, damping, evaluate(problem, model, data).train_loss


def main() -> None:
    """Make all runs, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--problems", nargs="+", default=[s.problem for s in SETTINGS])
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    sys.stdout.write("| | steps | at the switch | λ = 1 | the mean of the moments |\n| :-- | --: | --: | --: | --: |\n")
    for setting in SETTINGS:
        if setting.problem not in options.problems:
            continue
        data = find_problem(setting.problem).load_data(None)
        plain, carried = (
            [run(setting, data, seed, carry_over=carry_over) for seed in range(options.seeds)]
            for carry_over in (False, True)
        )
        before, damping = (statistics.median(values) for values in list(zip(*carried, strict=True))[:2])
        cells = [median_and_range([end for _, _, end in runs]) for runs in (plain, carried)]
        name = find_problem(setting.problem).name
        sys.stdout.write(f"| {name} | {setting.steps} | {before:.3g} | {cells[0]} | {cells[1]}, λ = {damping:.1g} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
