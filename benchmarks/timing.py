"""What a gradient, a set-up and a product take, in interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import Any

import torch

from benchmarks.networks import Network, Task
from benchmarks.peers import METHODS, Product, reason_for
from latephase.curvature import ggn

TOLERANCE = 1e-4  # Relative, for products in float32
ENOUGH_SECONDS = 0.2  # What is faster is repeated until it takes about that long.
PATIENCE_SECONDS = 60.0  # What has taken longer is left out of the rounds that follow.


def seconds(device: torch.device, work: Callable[[], Any], repeats: int = 1) -> float:
    """Return the mean time of `repeats` calls, from an idle device to an idle device."""
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    _synchronize(device)
    return (time.perf_counter() - start) / repeats


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles."""
    q1, _, q3 = quantiles(values, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"median": median(values), "q1": q1, "q3": q3}


def ratios(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Return the spread of ratios between numbers of the same round; one of the two may have ended earlier."""
    return spread([a / b for a, b in zip(over, under, strict=False)])


def measure_products(network: Network, device: torch.device, rounds: int) -> dict[str, Any]:
    """Compare all ways to multiply, first their results and then their time.

    In each round every way gets the same new point: other data of the same shapes, parameters changed in place.
    Its time for a product is that of further products after the first. Its set-up is what comes before the first
    product's end, less a product; that includes whatever it puts off until then.

    Returns:
        What the page shows of the network: differences, spreads of seconds and of their ratios, by name.
    """
    task = Task(network, device)
    for _ in range(3):
        task.gradient()
    once = seconds(device, task.gradient)
    repeats = _repeats(once)

    _use_once(device)
    first_setup, first_product = set_up_and_multiply(task, METHODS["latephase"])
    differences, unavailable = _compare(task)
    differing = [name for name, difference in differences.items() if not difference <= TOLERANCE]

    times: dict[str, dict[str, list[float]]] = {
        name: {"gradient": [], "setup": [], "product": []} for name in differences if name not in differing
    }
    for _ in range(rounds):
        task.move()
        for name, columns in times.items():
            if sum(columns["product"]) > PATIENCE_SECONDS:
                continue
            columns["gradient"].append(seconds(device, task.gradient, repeats))
            setup, product = set_up_and_multiply(task, METHODS[name])
            columns["setup"].append(setup)
            columns["product"].append(product)

    gradients = [g for columns in times.values() for g in columns["gradient"]]
    ours = times["latephase"]
    return {
        "gradient_seconds": spread(gradients),
        "first_setup": first_setup / median(gradients),
        "first_product": first_product / median(gradients),
        "methods": {
            **{name: {"unavailable": reason} for name, reason in unavailable.items()},
            **{name: {"unavailable": "differs from ours", "difference": differences[name]} for name in differing},
            **{
                name: {
                    "difference": differences[name],
                    "setup": ratios(columns["setup"], columns["gradient"]),
                    "product": ratios(columns["product"], columns["gradient"]),
                    "product_over_ours": ratios(columns["product"], ours["product"]),
                }
                for name, columns in times.items()
            },
        },
        **_backend(task),
    }


def set_up_and_multiply(task: Task, method: Callable[[Task], Product]) -> tuple[float, float]:
    """Return the seconds of a set-up and of a product."""
    products: list[Product] = []

    def until_first_product() -> None:
        products.append(method(task))
        products[0](task.v)

    until = seconds(task.device, until_first_product)
    product = seconds(task.device, lambda: products[0](task.v), _repeats(until))
    return until - product, product


def _compare(task: Task) -> tuple[dict[str, float], dict[str, str]]:
    """Return every way's relative difference from ours, and for those that are not available, why."""
    ours = METHODS["latephase"](task)(task.v)
    differences, unavailable = {}, {}
    for name, method in METHODS.items():
        try:
            differences[name] = float((method(task)(task.v) - ours).norm() / ours.norm())
        except Exception as error:  # noqa: PERF203 — whatever it is, it is the answer
            unavailable[name] = reason_for(error)
    return differences, unavailable


def _use_once(device: torch.device) -> None:
    """Load what the engine loads on first use, so that no network's set-up includes it."""
    layer = torch.nn.Linear(2, 2, device=device)
    x = torch.ones(3, 2, device=device)

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        outputs = layer(x)
        return outputs.square().mean(), outputs

    ggn(forward, layer.parameters()) @ torch.ones(6, device=device)


def _backend(task: Task) -> dict[str, str]:
    """Return which of the engine's ways ran, and why."""
    operator = ggn(task.closure(), task.params)
    operator @ task.v
    backend = getattr(operator, "backend", None)
    explain = getattr(operator, "explain", None)
    return {"backend": str(backend), "explain": str(explain()) if callable(explain) else ""}


def _repeats(once: float) -> int:
    return max(1, min(50, round(ENOUGH_SECONDS / once)))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
