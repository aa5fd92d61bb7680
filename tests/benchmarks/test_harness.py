"""The benchmarks' own arithmetic, and one run of every part on a tiny network."""

import pytest
import torch
from benchmarks import peers
from benchmarks.memory import measure_memory, measure_step_memory, memory_used
from benchmarks.networks import Network, Task
from benchmarks.partitioners import compare
from benchmarks.report import disagreement, section
from benchmarks.steps import measure_steps
from benchmarks.timing import measure_products, ratios, spread
from torch import nn

CPU = torch.device("cpu")
TINY = Network("tiny", lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,), 2, 6, 2)


def wrong(task):
    return lambda v: 1.001 * peers.torch_func(task)(v)


def broken(task):
    raise ImportError("not installed")


@pytest.fixture
def few_methods(monkeypatch):
    for name, method in {"backpack_kept": broken, "backpack_rerun": wrong, "curvlinops": broken}.items():
        monkeypatch.setitem(peers.METHODS, name, method)


def test_peak_counts_what_is_held_at_once():
    held = torch.zeros(250_000)  # lives before; does not count

    def work():
        a = held + 1.0
        b = a + 1.0
        del a
        c = b + 1.0  # b and c, or a and b: two at once, 1 MB each
        return float((b + c).sum())  # b, c and their sum: three

    for _ in range(2):
        usage = memory_used(CPU, work)
        assert usage.peak == pytest.approx(3e6, rel=0.01)
        assert usage.left == pytest.approx(0, abs=1e4)


def test_what_is_left_is_counted():
    kept = []
    usage = memory_used(CPU, lambda: kept.append(torch.zeros(250_000)))
    assert usage.left == pytest.approx(1e6, rel=0.01)


def test_spread_and_ratios():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "q1": 1.5, "q3": 2.5}
    assert spread([3.0]) == {"median": 3.0, "q1": 3.0, "q3": 3.0}
    assert ratios([2.0, 9.0, 4.0], [1.0, 3.0])["median"] == 2.5  # 2 and 3; the third round has no partner


@pytest.mark.usefixtures("few_methods")
def test_every_part_and_the_page():
    parts = {
        "products": measure_products(TINY, CPU, rounds=2),
        "memory": measure_memory(TINY, CPU),
        "step_memory": measure_step_memory(TINY, CPU),
        "steps": measure_steps(TINY, CPU, rounds=1),
    }
    methods = parts["products"]["methods"]
    assert methods["torch_func"]["difference"] < 1e-5
    assert methods["latephase"]["product_over_ours"]["median"] == 1.0
    assert methods["curvlinops"] == {"unavailable": "ImportError: not installed"}
    assert methods["backpack_rerun"]["unavailable"] == "differs from ours"
    assert disagreement(parts["products"]) == pytest.approx(1e-3, rel=0.1)
    assert parts["memory"]["methods"]["curvlinops"] == {"unavailable": "ImportError: not installed"}
    assert parts["step_memory"]["first"] > parts["memory"]["resident"]
    # In float32, where CG-backtracking may choose between equal losses by their rounding.
    assert parts["steps"]["differences"]["all_in_memory"] < 0.05
    assert parts["steps"]["differences"]["one_in_memory"] < 0.05

    machine: dict[str, object] = dict.fromkeys(["processor", "threads", "python", "torch", "backpack-for-pytorch"], "x")
    machine |= {"device": "CPU", "cores": 2, "curvlinops-for-pytorch": "x"}
    networks = {"tiny": parts, "other": {"products": {"error": "ValueError: why"}}}
    page = section({"machine": machine, "rounds": 2, "date": "2000-01-01T00:00", "networks": networks})
    assert "| tiny |" in page
    assert "- curvlinops on `tiny`: ImportError: not installed" in page
    assert "- `other`, products: ValueError: why" in page


def test_no_partitioner_leaves_less_to_a_product_than_our_split():
    ours, *others = [int(row.split("|")[3]) for row in compare(Task(TINY, CPU))]
    assert len(others) == 3
    assert ours <= min(others)
