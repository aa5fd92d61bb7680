"""Twenty steps of the optimizer beside twenty steps of the slow reference: they agree to 1e-9."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import latephase.parts.cg
from latephase import HessianFree, StepRecord
from latephase.parts import conjugate_gradients
from latephase.parts.conjugate_gradients import CGPath
from tests import reference
from tests.cases import Batch, LossFunction, case
from tests.comparison import TOLERANCE, assert_close

STEPS = 20


# ---------------------------------------------------------------------- the ways to call the optimizer


def by_step(
    opt: HessianFree, model: nn.Module, loss_func: LossFunction, batches: dict[str, Batch], M: Any, reduction: str
) -> float:
    """`step` with B and B̄ in closures; it has one B for gradient and curvature."""

    def closure(batch: Batch) -> Callable[[], tuple[Tensor, Tensor]]:
        def forward() -> tuple[Tensor, Tensor]:
            inputs, targets = batch
            outputs = model(inputs)
            return loss_func(outputs, targets), outputs

        return forward

    B, evaluation = batches["gradient"], batches["evaluation"]
    return opt.step(closure(B), M_func=M, evaluate=None if evaluation is B else closure(evaluation))


def by_acc_step(micro_batches_in_memory: int) -> Callable[..., float]:
    """`acc_step` with every batch cut into three micro-batches of different sizes."""

    def take(
        opt: HessianFree, model: nn.Module, loss_func: LossFunction, batches: dict[str, Batch], M: Any, reduction: str
    ) -> float:
        # A batch that has two purposes is one list.
        lists = {id(batch): cut(batch) for batch in batches.values()}
        return opt.acc_step(
            model,
            loss_func,
            lists[id(batches["evaluation"])],
            grad_datalist=lists[id(batches["gradient"])],
            mvp_datalist=lists[id(batches["curvature"])],
            M_func=M,
            reduction=reduction,
            micro_batches_in_memory=micro_batches_in_memory,
        )

    return take


def cut(batch: Batch) -> list[Batch]:
    """Cut a batch into micro-batches of 5, 3, and the other samples."""
    inputs, targets = batch
    sizes = [5, 3, len(inputs) - 8]
    return list(zip(inputs.split(sizes), targets.split(sizes), strict=True))


# ---------------------------------------------------------------------- the runs

HESSIAN = {"curvature_opt": "hessian"}


@dataclass(frozen=True)
class Run:
    """Twenty steps on one problem with one configuration.

    Rounding decides for itself which of two equal losses is smaller, and conjugate gradients amplify it once they have
    converged. So the runs are chosen where a change of θ by 1e-12 changes none of the decisions of twenty steps.

    Attributes:
        name: Names the run in the test report.
        problem: The name of the case.
        take: How the optimizer is called, one of the functions above.
        batches: What gradient, curvature and evaluation see: "identical" batches, "disjoint" ones (the evaluation
            has its own), or "three".
        options: Options of the optimizer.
        shows: What has to happen in these steps, or the run compares less than it is meant to; see `events`.
        groups: Options of the group of the first parameter and of the group of the others, where they are two.
        reduction: How the loss reduces over samples.
        preconditioned: Whether each step has a preconditioner, made for it by `get_preconditioner`.
        seed: Of the samples.
    """

    name: str
    problem: str
    take: Callable[..., float]
    batches: str
    options: dict[str, Any]
    shows: set[str]
    groups: tuple[dict[str, float], dict[str, float]] | None = None
    reduction: str = "mean"
    preconditioned: bool = False
    seed: int = 0

    def draw(self, step: int) -> dict[str, Batch]:
        """New samples for a step."""
        one, two, three = (case(self.problem).batch(n, seed=1000 * self.seed + 10 * step + n) for n in (20, 16, 12))
        return {
            "gradient": one,
            "curvature": two if self.batches == "three" else one,
            "evaluation": one if self.batches == "identical" else three,
        }


WARM, EARLIER, SHORTER = {"warm start"}, {"earlier iterate"}, {"shorter step"}
MARTENS, REFUSED = {"relative_progress"}, {"no_decrease"}
DAMPING = {"more damping", "less damping"}
USUAL = WARM | EARLIER | DAMPING
INDEFINITE = {"non-positive curvature"}

TWO_GROUPS = ({"weight_decay": 0.1, "lr": 0.8, "damping": 0.2}, {"weight_decay": 0.01, "lr": 1.0, "damping": 0.5})

RUNS = [
    # the GGN, by step
    Run(
        "disjoint-batches",
        "mlp-cross-entropy",
        by_step,
        "disjoint",
        {"damping": 0.3},
        USUAL | MARTENS | REFUSED | SHORTER,
        seed=1,
    ),
    Run("one-batch", "mlp-mse", by_step, "identical", {"cg_max_iter": 8}, USUAL),
    Run(
        "preconditioned",
        "mlp-cross-entropy",
        by_step,
        "disjoint",
        {"damping": 0.3},
        USUAL | MARTENS,
        preconditioned=True,
        seed=1,
    ),
    Run("linear", "linear-mse", by_step, "disjoint", {"damping": 0.3, "cg_max_iter": 4}, USUAL),
    Run(
        "layer-norm", "layer-norm-cross-entropy", by_step, "disjoint", {"damping": 0.3, "cg_max_iter": 8}, USUAL, seed=1
    ),
    Run("gru", "gru-cross-entropy", by_step, "disjoint", {"damping": 0.3, "cg_max_iter": 5}, USUAL),
    Run("embedding", "embedding-cross-entropy", by_step, "disjoint", {"damping": 0.3, "cg_max_iter": 6}, USUAL),
    Run(
        "batch-norm", "batch-norm-cross-entropy", by_step, "disjoint", {"damping": 0.3, "cg_max_iter": 6}, USUAL, seed=2
    ),
    # the Hessian, by step
    Run(
        "hessian-stop",
        "mlp-mse",
        by_step,
        "disjoint",
        {**HESSIAN, "damping": 0.1, "cg_max_iter": 12},
        USUAL | MARTENS | {"non_positive_curvature"},
    ),
    Run(
        "hessian-stop-at-once",
        "deep-mlp-huber",
        by_step,
        "disjoint",
        {**HESSIAN, "damping": 0.001, "cg_max_iter": 6},
        {"non_positive_curvature", "no_direction"},
        seed=1,
    ),
    Run(
        "hessian-saddle-free",
        "mlp-mse",
        by_step,
        "disjoint",
        {**HESSIAN, "damping": 0.3, "cg_max_iter": 8, "nonpos_curv_option": "saddle-free"},
        USUAL | INDEFINITE,
    ),
    Run(
        "hessian-saddle-free-gru",
        "gru-cross-entropy",
        by_step,
        "disjoint",
        {**HESSIAN, "damping": 0.3, "cg_max_iter": 8, "nonpos_curv_option": "saddle-free"},
        USUAL | INDEFINITE,
    ),
    Run(
        "hessian-ignore",
        "mlp-mse",
        by_step,
        "disjoint",
        {**HESSIAN, "damping": 0.3, "cg_max_iter": 8, "nonpos_curv_option": "ignore"},
        USUAL | INDEFINITE,
    ),
    Run(
        "hessian-preconditioned",
        "mlp-cross-entropy",
        by_step,
        "disjoint",
        {**HESSIAN, "damping": 0.3},
        USUAL | MARTENS | INDEFINITE,
        preconditioned=True,
        seed=2,
    ),
    # by acc_step
    Run(
        "acc",
        "cnn-cross-entropy",
        by_acc_step(1),
        "three",
        {"damping": 0.3, "cg_max_iter": 12},
        MARTENS | DAMPING | SHORTER,
        seed=1,
    ),
    Run(
        "acc-all-in-memory",
        "deep-mlp-huber",
        by_acc_step(3),
        "identical",
        {"damping": 0.3, "cg_max_iter": 6},
        USUAL,
        seed=1,
    ),
    Run(
        "acc-sum",
        "mlp-mse",
        by_acc_step(1),
        "identical",
        {"damping": 20.0, "cg_max_iter": 8},
        USUAL,
        reduction="sum",
    ),
    Run(
        "acc-sum-preconditioned",
        "cnn-cross-entropy",
        by_acc_step(2),
        "three",
        {"damping": 2.0},
        MARTENS | DAMPING,
        reduction="sum",
        preconditioned=True,
        seed=1,
    ),
    Run(
        "acc-hessian",
        "layer-norm-cross-entropy",
        by_acc_step(3),
        "three",
        {**HESSIAN},
        USUAL | MARTENS | INDEFINITE,
        seed=2,
    ),
    Run(
        "acc-hessian-sum",
        "autoencoder-bce",
        by_acc_step(1),
        "disjoint",
        {**HESSIAN, "damping": 6.0, "cg_max_iter": 8},
        USUAL | INDEFINITE,
        reduction="sum",
        seed=1,
    ),
    Run(
        "acc-hessian-preconditioned",
        "autoencoder-bce",
        by_acc_step(2),
        "three",
        {**HESSIAN, "damping": 0.3},
        USUAL | MARTENS,
        preconditioned=True,
    ),
    # weight decay, damping and step size of their own for each group
    Run("groups", "mlp-mse", by_step, "disjoint", {"cg_max_iter": 12}, USUAL | SHORTER, groups=TWO_GROUPS, seed=1),
    Run(
        "acc-groups-hessian-preconditioned",
        "mlp-cross-entropy",
        by_acc_step(1),
        "three",
        {**HESSIAN, "cg_max_iter": 12},
        USUAL | INDEFINITE,
        groups=TWO_GROUPS,
        preconditioned=True,
    ),
    # parts switched off or set otherwise
    Run(
        "bare",
        "mlp-mse",
        by_step,
        "disjoint",
        {
            "damping": 0.3,
            "lr": 0.5,
            "cg_max_iter": 10,
            "use_linesearch": False,
            "use_cg_backtracking": False,
            "adapt_damping": False,
        },
        WARM,
    ),
    Run(
        "no-line-search",
        "mlp-cross-entropy",
        by_step,
        "disjoint",
        {"damping": 0.1, "lr": 0.7, "use_linesearch": False, "cg_decay_x0": 0.5},
        USUAL,
        seed=1,
    ),
    Run(
        "no-backtracking",
        "mlp-cross-entropy",
        by_step,
        "disjoint",
        {"damping": 0.1, "lr": 1.5, "use_cg_backtracking": False, "cg_max_iter": 10},
        WARM | SHORTER,
        seed=2,
    ),
    Run(
        "no-martens-rule",
        "mlp-cross-entropy",
        by_step,
        "disjoint",
        {
            "damping": 0.3,
            "adapt_damping": False,
            "martens_conv_crit": False,
            "cg_max_iter": 13,
            "weight_decay": 0.01,
        },
        WARM | EARLIER | {"max_iterations"},
    ),
    Run(
        "narrow-damping-bounds",
        "autoencoder-bce",
        by_step,
        "disjoint",
        {"damping": 0.07, "damping_bounds": (0.05, 0.1)},
        USUAL | MARTENS,
        seed=1,
    ),
]


# ---------------------------------------------------------------------- the comparison


@pytest.mark.parametrize("run", [pytest.param(run, id=run.name) for run in RUNS])
def test_twenty_steps(run: Run, monkeypatch: pytest.MonkeyPatch):
    model, loss_func = case(run.problem).model(), case(run.problem).loss_func(run.reduction)
    opt = optimizer(run, model)
    network = reference.Network(model, loss_func)
    settings = settings_of(opt, run)
    state = reference.State(network.theta(), per_parameter(opt, "damping"))
    paths = spy_on_cg(monkeypatch)
    history = []

    for number in range(STEPS):
        batches = run.draw(number)
        M, M_dense = preconditioners(run, opt, model, network, state, settings, batches["gradient"])
        want = reference.step(network, state, settings, batches, M_dense)

        loss = run.take(opt, model, loss_func, batches, M, run.reduction)

        assert_same_path(paths.pop(), want, backtracking=settings.use_cg_backtracking)
        assert_same_record(opt.last_step, want)
        assert loss == opt.last_step.loss_after
        assert_close(per_parameter(opt, "damping"), want.state.damping)
        assert_close(network.theta(), want.state.theta)
        assert_close(remembered(opt), 0.0 * state.theta if want.state.solution is None else want.state.solution)
        state = want.state
        history.append(want)

    assert run.shows <= events(history)


def optimizer(run: Run, model: nn.Module) -> HessianFree:
    first, *others = model.parameters()
    if run.groups is None:
        return HessianFree([first, *others], **run.options)
    return HessianFree(
        [{"params": [first], **run.groups[0]}, {"params": others, **run.groups[1]}],
        **run.options,
    )


def settings_of(opt: HessianFree, run: Run) -> reference.Settings:
    options = {key: value for key, value in run.options.items() if key not in ("damping", "lr", "weight_decay")}
    return reference.Settings(lr=per_parameter(opt, "lr"), weight_decay=per_parameter(opt, "weight_decay"), **options)


def per_parameter(opt: HessianFree, key: str) -> Tensor:
    """The groups' option `key` as a vector of shape (P,)."""
    return torch.tensor(
        [group[key] for group in opt.param_groups for p in group["params"] for _ in range(p.numel())],
        dtype=torch.float64,
    )


def remembered(opt: HessianFree) -> Tensor:
    """The CG solution that the next step may start from; zero where there is none."""
    return torch.cat([opt.state[p]["cg_solution"].reshape(-1) for group in opt.param_groups for p in group["params"]])


def preconditioners(
    run: Run,
    opt: HessianFree,
    model: nn.Module,
    network: reference.Network,
    state: reference.State,
    settings: reference.Settings,
    batch: Batch,
) -> tuple[Any, Tensor | None]:
    """The optimizer's preconditioner for this step and the reference's, a dense matrix."""
    if not run.preconditioned:
        return None, None
    fisher = reference.empirical_fisher_diagonal(network, state.theta, batch, run.reduction)
    dense = torch.diag((fisher + settings.weight_decay + state.damping) ** -0.75)
    return opt.get_preconditioner(model, network.loss_func, *batch, run.reduction), dense


def spy_on_cg(monkeypatch: pytest.MonkeyPatch) -> list[CGPath]:
    """Collect the paths that the optimizer's conjugate gradients take."""
    paths = []
    cg = conjugate_gradients.cg

    def spy(*args: Any, **kwargs: Any) -> CGPath:
        paths.append(cg(*args, **kwargs, in_memory=1000))
        return paths[-1]

    monkeypatch.setattr(latephase.parts.cg, "cg", spy)
    return paths


def assert_same_path(path: CGPath, want: reference.Step, *, backtracking: bool) -> None:
    assert path.stop.name.lower() == want.path.stop
    assert path.last == want.path.last
    assert_close(torch.tensor(path.values), torch.tensor(want.path.values))
    wanted = set(want.candidates) if backtracking else {path.last}
    assert wanted <= set(path.iterates)
    for n, iterate in path.iterates.items():
        assert_close(iterate, want.path.iterates[n])


def assert_same_record(record: StepRecord, want: reference.Step) -> None:
    assert record.outcome.name.lower() == want.outcome
    assert record.cg_iterations == want.path.last
    assert record.cg_stop.name.lower() == want.path.stop
    assert record.cg_iterate == want.chosen
    assert record.warm_started == (want.path.values[0] < 0.0)
    assert record.loss_before == pytest.approx(want.loss_before, rel=TOLERANCE)
    assert record.loss_after == pytest.approx(want.loss_after, rel=TOLERANCE)
    if want.ratio is None:
        assert record.reduction_ratio is None
    else:
        # A quotient of a difference of losses.
        uncertainty = TOLERANCE * want.loss_before / abs(want.path.values[-1])
        assert record.reduction_ratio == pytest.approx(want.ratio, rel=TOLERANCE, abs=uncertainty)


def events(history: list[reference.Step]) -> set[str]:
    """What happened in these steps, outcomes and stop reasons included."""
    happened = {one.outcome for one in history} | {one.path.stop for one in history}
    for one in history:
        happened |= {"warm start"} if one.path.values[0] < 0.0 else set()
        happened |= {"earlier iterate"} if one.chosen is not None and one.chosen < one.path.last else set()
        happened |= {"shorter step"} if 0.0 < one.alpha < 1.0 else set()
        happened |= {"non-positive curvature"} if min(one.path.curvatures) <= 0.0 else set()
    for before, after in pairwise(one.state.damping for one in history):
        happened.add("more damping" if after[0] > before[0] else "less damping" if after[0] < before[0] else "same")
    return happened
