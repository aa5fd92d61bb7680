"""Curves for TensorBoard."""

from collections.abc import Sequence
from dataclasses import asdict

from latephase import StepRecord
from latephase.study.runs.evaluation import Point


def log_curve(folder: str | None, name: str, curve: Sequence[Point], records: Sequence[StepRecord] = ()) -> None:
    """Write a run's curve, and the numbers of its Hessian-free steps; nothing where ``folder`` is None.

    Raises:
        ImportError: If TensorBoard is not installed.
    """
    if folder is None:
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(f"{folder}/{name}") as writer:
        for point in curve:
            numbers = asdict(point)
            step = numbers.pop("steps")
            for key, value in numbers.items():
                writer.add_scalar(f"curve/{key}", value, step, walltime=point.seconds)
        for step, record in enumerate(records, start=1):
            for key in ("loss_before", "loss_after", "damping", "cg_iterations", "step_size"):
                writer.add_scalar(f"step/{key}", getattr(record, key), step)
