"""Several processes take one step together: as one process does on all of their data, or not at all."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from latephase import HessianFree
from latephase.distributed import Header, RankError, Together
from latephase.parts.cg import CG
from latephase.parts.direct import Direct
from latephase.parts.krylov import Krylov
from latephase.parts.quasi_newton import QuasiNewton
from latephase.parts.sampled import Sampled
from latephase.parts.solver import DampedProblem, Solver
from latephase.parts.solver import Path as Steps
from tests.pages import DOCS, python
from tests.ranks import DiedError, together

CUTS = {1: [60], 2: [13, 47], 4: [7, 33, 10, 10]}  # how many samples each rank has, of 60
DTYPES = {32: torch.float32, 64: torch.float64}
SOLVERS = ["cg", "krylov", "direct", "sampled", "quasi-newton"]


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def samples(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(0, 3, (60,), generator=generator)


def part(rank: int, ranks: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A rank's samples."""
    x, y = samples(dtype)
    return x.split(CUTS[ranks])[rank], y.split(CUTS[ranks])[rank]


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def optimizer(model: nn.Module, **options: Any) -> HessianFree:
    """One whose λ is not so small that rounding grows much from step to step."""
    return HessianFree(model.parameters(), damping=0.5, damping_bounds=(0.5, 1e6), **options)


def batch_step(opt: HessianFree, model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    """By micro-batches; all samples in B, the first half of this rank's for the curvature, the others in B̄."""
    x, y = data
    half = len(x) // 2
    first, second = (x[:half], y[:half]), (x[half:], y[half:])
    opt.acc_step(model, F.cross_entropy, [second], [first, second], [first], micro_batches_in_memory=2)


def closure_step(opt: HessianFree, model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    """By closures, with a B̄ that this rank has another share of."""
    x, y = data

    def closure() -> tuple[Tensor, Tensor]:
        outputs = model(x)
        return F.cross_entropy(outputs, y), outputs

    def evaluate() -> Tensor:
        return F.cross_entropy(model(x[2:]), y[2:])

    opt.step(closure, evaluate=evaluate, weight=len(x), evaluate_weight=len(x) - 2)


def union(model: nn.Module, ranks: int, kind: str, seed: int | None = None) -> Callable[[HessianFree], float | None]:
    """The same step on all samples, in one process and without weights; with a seed, in another order."""
    dtype = next(model.parameters()).dtype
    x, y = samples(dtype)
    pieces = list(zip(x.split(CUTS[ranks]), y.split(CUTS[ranks]), strict=True))
    if seed is not None:
        pieces = pieces[::-1]
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        x, y = x[order], y[order]
    if kind == "acc_step":
        first = torch.cat([a[: len(a) // 2] for a, _ in pieces]), torch.cat([b[: len(b) // 2] for _, b in pieces])
        second = torch.cat([a[len(a) // 2 :] for a, _ in pieces]), torch.cat([b[len(b) // 2 :] for _, b in pieces])
        return lambda opt: opt.acc_step(model, F.cross_entropy, [second], [(x, y)], [first])
    judged = torch.cat([a[2:] for a, _ in pieces]), torch.cat([b[2:] for _, b in pieces])

    def closure() -> tuple[Tensor, Tensor]:
        outputs = model(x)
        return F.cross_entropy(outputs, y), outputs

    return lambda opt: opt.step(closure, evaluate=lambda: F.cross_entropy(model(judged[0]), judged[1]))


STEPS = {"acc_step": batch_step, "step": closure_step}
WITH_TWO = [(32, "cg"), (32, "direct"), *((64, solver) for solver in SOLVERS)]
EACH = {
    2: [("acc_step", solver, DTYPES[bits]) for bits, solver in WITH_TWO] + [("step", "cg", torch.float64)],
    4: [("acc_step", solver, torch.float64) for solver in SOLVERS],
}
HOW_MANY = {2: 20, 4: 5}  # steps; four ranks are slow on two cores


def comparable(solver: str) -> Solver | str:
    """A sample is drawn by each rank from its own: only where all rows are in it is it that of one process."""
    return Sampled(redundancy=math.inf) if solver == "sampled" else solver


def several(
    how_many: int, step: Callable[[HessianFree], object], model: nn.Module, **options: Any
) -> tuple[Tensor, Tensor, str]:
    """Parameters after each step, the last `.grad`, and what the solver was."""
    opt = optimizer(model, weight_decay=0.01, **options)
    path = []
    for _ in range(how_many):
        step(opt)
        path.append(flat(model))
    assert opt.last_step is not None
    return torch.stack(path), torch.cat([p.grad.flatten() for p in model.parameters()]), opt.last_step.solver


def all_solvers(rank: int, ranks: int) -> list[tuple[Tensor, Tensor, str]]:
    results = []
    for kind, solver, dtype in EACH[ranks]:
        model, data = network(dtype), part(rank, ranks, dtype)
        step = partial(STEPS[kind], model=model, data=data)
        results.append(several(HOW_MANY[ranks], step, model, solver=comparable(solver), process_group="world"))
    return results


def distance(path: Tensor, expected: Tensor) -> Tensor:
    return (path - expected).norm(dim=1) / expected.norm(dim=1)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_step_as_one_process_does_on_all_samples(ranks: int, tmp_path: Path) -> None:
    """As near as one process comes to itself with its samples in another order."""
    results = together(ranks, tmp_path, all_solvers, ranks)
    for number, (kind, solver, dtype) in enumerate(EACH[ranks]):
        path, gradient, method = results[0][number]
        for other in results[1:]:
            assert torch.equal(path, other[number][0]), (solver, dtype)
            assert torch.equal(gradient, other[number][1]), (solver, dtype)
            assert method == other[number][2]
        alone = []
        for seed in None, 1, 2:
            model = network(dtype)
            alone.append(several(HOW_MANY[ranks], union(model, ranks, kind, seed), model, solver=comparable(solver)))
        expected, expected_gradient, expected_method = alone[0]
        assert method == expected_method
        precision = 1e-6 if dtype is torch.float32 else 1e-12
        own = torch.stack([distance(other, expected) for other, *_ in alone[1:]]).amax(dim=0).cummax(dim=0).values
        assert (distance(path, expected) <= precision + 30 * own).all(), (kind, solver, dtype)
        assert (gradient - expected_gradient).norm() <= 0.01 * expected_gradient.norm() + 1e-4, (kind, solver, dtype)


# ---------------------------------------------------------------------- faults


SHORT: dict[str, Solver] = {
    "cg": CG(max_iter=3),
    "krylov": Krylov(products=3, corrections=1),
    "direct": Direct(corrections=1, trials=3),
    "sampled": Sampled(iterations=3, trials=3),
    "quasi-newton": QuasiNewton(Krylov(products=3, corrections=0), most=3),
}


class FaultError(Exception):
    """What is injected."""


@contextmanager
def fault_at(number: int, fault: Callable[[], None]) -> Iterator[list[str]]:
    """Let `fault` happen in this rank's part of the exchange with this number; yields what was exchanged."""
    seen: list[str] = []
    told = Together._told

    def faulty(self: Together, what: str, compute: Callable[[], Any]) -> Any:
        seen.append(what)

        def spoilt() -> Any:
            if len(seen) == number + 1:
                fault()
            return compute()

        return told(self, what, spoilt)

    with mock.patch.object(Together, "_told", faulty):
        yield seen


def fail() -> None:
    raise FaultError("out of luck")


def faults_at_every_exchange(rank: int, ranks: int) -> dict[str, tuple[list[str], list[str]]]:
    """For each solver: what was exchanged, and what this rank was told after a fault on rank 1 at each of them."""
    results = {}
    for solver, short in SHORT.items():
        model = network()
        opt = optimizer(model, solver=short, process_group="world")
        batch_step(opt, model, part(rank, ranks))
        found = {key: value.clone() for key, value in model.state_dict().items()}
        state = opt.state_dict()
        with fault_at(10**9, fail) as exchanges:
            batch_step(opt, model, part(rank, ranks))
        undisturbed, told = flat(model), []
        for number in range(len(exchanges)):
            model.load_state_dict(found)
            opt.load_state_dict(state)
            try:
                with fault_at(number, fail if rank == 1 else lambda: None):
                    batch_step(opt, model, part(rank, ranks))
                told.append("nothing")
            except (FaultError, RankError) as error:
                told.append(f"{type(error).__name__}: {error}")
            assert all(torch.equal(value, found[key]) for key, value in model.state_dict().items())
            if number % 5 == 0:
                batch_step(opt, model, part(rank, ranks))
                assert torch.equal(flat(model), undisturbed), (solver, number)
        results[solver] = exchanges, told
    return results


def test_a_fault_on_one_rank_ends_the_step_on_all_and_nothing_is_lost(tmp_path: Path) -> None:
    first, second = together(2, tmp_path, faults_at_every_exchange, 2)
    for solver in SOLVERS:
        exchanges, told = second[solver]
        assert first[solver][0] == exchanges
        assert len(exchanges) >= 9
        assert {"the gradient", "the loss at a trial point"} <= set(exchanges)
        assert told == ["FaultError: out of luck"] * len(exchanges)
        words = "RankError: the step was given up on all ranks, as it failed on rank 1: FaultError: out of luck"
        assert first[solver][1] == [words] * len(exchanges)
    assert "a product" in first["cg"][0]
    assert {"the rows", "R", "the change of the outputs"} <= set(first["direct"][0])
    assert {"its pull-back", "a product"} <= set(first["krylov"][0])
    assert "the gradient at a trial point" in first["quasi-newton"][0]


def said(attempt: Callable[[HessianFree, nn.Module], object], **options: Any) -> str:
    """How a first step ends."""
    model = network()
    try:
        attempt(optimizer(model, process_group="world", **options), model)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def faulty_solver(problem: DampedProblem) -> Steps:
    raise FaultError("no solution")


def good_solver(problem: DampedProblem) -> Steps:
    return Steps({1: problem.b}, predicted=-1.0)


def faults_between(rank: int) -> list[str]:
    """Faults outside of any exchange, and ranks that differ."""
    x, y = part(rank, 2)

    def loss(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(x), y)

    def step(opt: HessianFree, model: nn.Module) -> None:
        batch_step(opt, model, (x, y))

    def interrupted(opt: HessianFree, model: nn.Module) -> None:
        def closure() -> Tensor:
            if rank == 0:
                raise KeyboardInterrupt
            return loss(model)

        opt.step(closure)

    def from_elsewhere(opt: HessianFree, model: nn.Module) -> None:
        with torch.no_grad():
            next(model.parameters())[0, 0] += 1e-12 * rank
        step(opt, model)

    def with_other_damping(opt: HessianFree, model: nn.Module) -> None:
        opt.param_groups[0]["damping"] = 1.0 + rank
        step(opt, model)

    return [
        said(step, solver=faulty_solver if rank == 0 else good_solver),
        said(lambda opt, model: opt.step(None if rank == 0 else lambda: loss(model))),
        said(lambda opt, model: opt.acc_step(model, F.cross_entropy, [(x, y)][rank == 0 :])),
        said(lambda opt, model: opt.acc_step(model, F.cross_entropy, [(x, y)], reduction=["median", "mean"][rank])),
        said(interrupted, curvature_opt="hessian"),
        said(from_elsewhere),
        said(with_other_damping),
        said(lambda opt, model: list(STEPS.values())[rank](opt, model, (x, y))),
        said(lambda opt, model: opt.step(lambda: loss(model), weight=[-1.0, 1.0][rank])),
        said(lambda opt, model: opt.step(lambda: loss(model), weight=0.0)),
        said(lambda opt, model: opt.step(lambda: loss(model), weight=rank)),
        said(step),
    ]


def test_ranks_that_differ_are_told(tmp_path: Path) -> None:
    first, second = together(2, tmp_path, faults_between)
    expected = [
        ("FaultError: no solution", "rank 0: FaultError: no solution"),
        ("rank 1 differs from rank 0 in whether there is a closure", "RankError"),
        ("ValueError: loss_datalist", "rank 0: ValueError: loss_datalist"),
        ("ValueError: reduction", "rank 0: ValueError: reduction"),
        ("KeyboardInterrupt", "rank 0: KeyboardInterrupt"),
        ("rank 1 differs from rank 0 in parameters, options or the remembered solution before", "RankError"),
        ("rank 1 differs from rank 0 in parameters, options or the remembered solution before", "RankError"),
        (
            "this one is at the sum of weights of grad_datalist, rank 1 elsewhere",
            "this one is at whether there is a closure, r",
        ),
        ("ValueError: weight must be", "rank 0: ValueError: weight"),
        ("ValueError: weight must not be 0 for all", "ValueError: weight must not be 0 for all"),
        ("nothing", "nothing"),
        ("nothing", "nothing"),
    ]
    for one, other, (words, others) in zip(first, second, expected, strict=True):
        assert words in one
        assert others in other


def dying(rank: int, number: int) -> str:
    model = network()
    opt = optimizer(model, process_group="world")
    before = flat(model)
    try:
        with fault_at(number, lambda: os._exit(3) if rank == 1 else None):
            batch_step(opt, model, part(rank, 2))
    except RuntimeError as error:
        assert torch.equal(flat(model), before)
        return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.mark.parametrize("number", [0, 11])
def test_a_rank_that_dies_ends_the_step_of_the_others_with_an_error(number: int, tmp_path: Path) -> None:
    first, second = together(2, tmp_path, dying, number)
    assert isinstance(second, DiedError)
    assert "exit code 3" in str(second)
    assert first.startswith("RankLostError: an exchange of 2 ranks failed; has one died? ")


# ---------------------------------------------------------------------- what else a step does


class Initialised(nn.Module):
    """Sets its bias from the first batch it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3, dtype=torch.float64)
        self.ready = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.ready = True
            with torch.no_grad():
                self.linear.bias.copy_(-self.linear(x).mean(dim=0))
        return self.linear(x)


def other_programs(rank: int, folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {}
    x, y = part(rank, 2)

    # Data-dependent initialisation: from the same data on all ranks, from other data, on one rank only.
    for name, batch, ready in (
        ("from the same", samples(), False),
        ("from others", (x, y), False),
        ("on one", samples(), rank == 0),
    ):
        torch.manual_seed(0)
        lazy = Initialised()
        lazy.ready = ready
        try:
            optimizer(lazy, process_group="world").acc_step(lazy, F.cross_entropy, [batch])
            results[name] = flat(lazy)
        except RuntimeError as error:
            results[name] = f"{type(error).__name__}: {error}"

    # Dropout and BatchNorm in training mode.
    torch.manual_seed(rank)
    norm = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, 3)).double()
    for p in norm.parameters():
        dist.broadcast(p.data, 0)
    opt = HessianFree(norm.parameters(), process_group="world")
    for _ in range(3):
        batch_step(opt, norm, (x, y))
    results["training mode"] = flat(norm)

    # Martens' preconditioner.
    model = network()
    opt = optimizer(model, process_group="world")
    v = torch.linspace(1.0, 2.0, len(flat(model)), dtype=torch.float64)
    results["mean"] = opt.get_preconditioner(model, F.cross_entropy, x, y, "mean")(v)
    results["sum"] = opt.get_preconditioner(model, nn.CrossEntropyLoss(reduction="sum"), x, y, "sum")(v)
    opt.acc_step(model, nn.CrossEntropyLoss(reduction="sum"), [(x, y)], reduction="sum")
    results["a sum"] = flat(model)

    # Gradient and products of the caller's own: this rank's, for a group; averaged already, without one.
    for name, group in (("own", "world"), ("by hand", None)):
        model = network()
        own = torch.ones(len(v), dtype=torch.float64) * (1 + 2 * rank if group else 2)
        opt = optimizer(model, process_group=group)
        opt.step(lambda: F.cross_entropy(model(samples()[0]), samples()[1]), own, lambda u: u.clone())  # noqa: B023
        results[name] = flat(model)

    # Saved by all ranks, loaded by one.
    model = network()
    opt = optimizer(model, process_group="world")
    batch_step(opt, model, (x, y))
    weights, state = get_state_dict(model, opt)
    state_dict_saver.save({"model": weights, "opt": state}, checkpoint_id=folder / "checkpoint")
    batch_step(opt, model, (x, y))
    results["saved"] = flat(model)
    return results


def test_what_else_a_step_does(tmp_path: Path) -> None:
    first, second = together(2, tmp_path, other_programs, tmp_path)
    for key in ("from the same", "training mode", "mean", "sum", "a sum", "own", "by hand", "saved"):
        assert torch.equal(first[key], second[key]), key

    x, y = samples()
    torch.manual_seed(0)
    lazy = Initialised()
    optimizer(lazy).acc_step(lazy, F.cross_entropy, [(x, y)])
    torch.testing.assert_close(first["from the same"], flat(lazy), rtol=1e-12, atol=0)
    assert first["from others"].startswith("RankError")
    assert "rank 1 differs from rank 0 in parameters" in first["from others"]
    assert "failed on rank 1: ParametersWrittenError" in first["on one"]
    assert "RankError" in second["on one"]

    model = network()
    opt = optimizer(model)
    v = torch.linspace(1.0, 2.0, len(flat(model)), dtype=torch.float64)
    mean = opt.get_preconditioner(model, F.cross_entropy, x, y, "mean")(v)
    torch.testing.assert_close(first["mean"], mean, rtol=1e-12, atol=0)
    summed = opt.get_preconditioner(model, nn.CrossEntropyLoss(reduction="sum"), x, y, "sum")(v)
    torch.testing.assert_close(first["sum"], summed, rtol=1e-12, atol=0)
    opt.acc_step(model, nn.CrossEntropyLoss(reduction="sum"), [(x, y)], reduction="sum")
    torch.testing.assert_close(first["a sum"], flat(model), rtol=1e-5, atol=0)

    for key in ("own", "by hand"):
        model = network()
        twos = torch.full((len(v),), 2.0, dtype=torch.float64)
        optimizer(model).step(lambda: F.cross_entropy(model(x), y), twos, lambda u: u.clone())  # noqa: B023
        torch.testing.assert_close(first[key], flat(model), rtol=1e-12, atol=0)

    model = network()
    opt = optimizer(model)
    weights, state = get_state_dict(model, opt)
    saved: dict[str, Any] = {"model": weights, "opt": state}
    with pytest.warns(UserWarning, match="assuming the intent is to load in a single process"):
        state_dict_loader.load(saved, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    set_state_dict(model, opt, model_state_dict=saved["model"], optim_state_dict=saved["opt"])
    union(model, 2, "acc_step")(opt)
    torch.testing.assert_close(first["saved"], flat(model), rtol=1e-10, atol=0)


def in_subgroups(rank: int) -> Tensor:
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    model = network()
    opt = optimizer(model, process_group=pairs[rank // 2])
    x, y = part(rank % 2, 2)
    batch_step(opt, model, (x + rank // 2, y))
    return flat(model)


def test_groups_step_apart(tmp_path: Path) -> None:
    results = together(4, tmp_path, in_subgroups)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[2], results[3])
    assert not torch.equal(results[0], results[2])
    model = network()
    union(model, 2, "acc_step")(opt := optimizer(model))
    assert opt.last_step is not None
    torch.testing.assert_close(results[0], flat(model), rtol=1e-12, atol=0)


def attended_twice(rank: int, where: str) -> list[str]:
    """What each of four tries ends with: two fail on rank 1, within one `attended` or two."""
    ends, mine = [], ValueError("mine")  # the same one twice, as some raise it
    for number in range(4):
        failing = where if rank == 1 and number in (1, 2) else ""
        try:
            with Together(None, torch.device("cpu")).attended():
                if failing == "outer":
                    raise mine
                with (inner := Together(None, torch.device("cpu"))).attended():
                    inner.number("a number", lambda: 1.0)
                    if failing == "inner":
                        raise mine
                    inner.number("another", lambda: float("mine" if failing == "sum" else 1))  # noqa: B023 — used at once
            ends.append("over")
        except (ValueError, RankError) as error:
            ends.append(type(error).__name__)
    return ends


@pytest.mark.parametrize("where", ["outer", "inner", "sum"])
def test_a_fault_is_told_once_whoever_attends(where: str, tmp_path: Path) -> None:
    first, second = together(2, tmp_path, attended_twice, where)
    assert first == ["over", "RankError", "RankError", "over"]
    assert second == ["over", "ValueError", "ValueError", "over"]


# ---------------------------------------------------------------------- in this process


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_group_of_one_changes_nothing(solver: str) -> None:
    results = []
    for group in None, "world", dist.group.WORLD:
        model = network()
        opt = optimizer(model, solver=solver, process_group=group)
        for _ in range(3):
            batch_step(opt, model, samples())
        results.append(flat(model))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.usefixtures("group_of_one")
def test_the_example_of_the_docs() -> None:
    code, _ = python(DOCS / "scale.md")
    namespace: dict[str, Any] = {}
    exec(compile(code, "scale.md", "exec"), namespace)
    x = torch.randn(20, 4)
    model = namespace["train"](0, x, x[:, :1] * x[:, 1:2])
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert F.mse_loss(model(x), x[:, :1] * x[:, 1:2]) < 1.0


def test_a_group_needs_to_be_initialised() -> None:
    model = network()
    opt = optimizer(model, process_group="world")
    with pytest.raises(RuntimeError, match=r"torchrun.*init_process_group"):
        batch_step(opt, model, samples())
    with pytest.raises(ValueError, match=r'process_group must be None, "world" or a group of torch\.distributed'):
        HessianFree(model.parameters(), process_group="all")


@pytest.mark.usefixtures("group_of_one")
def test_sharded_parameters_are_refused_when_constructed() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = nn.Linear(3, 2)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(TypeError, match=r"DTensor.*process_group"):
        HessianFree(model.parameters())


def test_a_header_arrives_as_it_was_sent() -> None:
    for number in 0.1, float("inf"), -0.0, 1e300:
        header = Header(1, 2**32 - 1, 2**62 - 1, number)
        assert Header.unpacked(header.packed()) == header
    assert Header.unpacked(Header(0, 0, 0, float("nan")).packed()).number != 0
