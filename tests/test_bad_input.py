"""Bad arguments and closures: an error that names the argument, the value and what is allowed; nothing is touched."""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from latephase import HessianFree, Outcome
from tests.contract import Problem, batch, closure, differences, plain_network

NAN, INF = math.nan, math.inf


@contextmanager
def refused(problem: Problem, error: type[Exception] | tuple[type[Exception], ...], *parts: str) -> Iterator[None]:
    """The block raises an error whose message has all these parts, and the problem is as it was."""
    before, record = problem.snapshot(), problem.opt.last_step
    with pytest.raises(error) as raised:
        yield
    assert differences(before, problem.snapshot()) == []
    assert problem.opt.last_step is record
    missing = [part for part in parts if part not in str(raised.value)]
    assert missing == [], str(raised.value)
    problem.step()  # still works
    assert problem.opt.last_step.outcome is Outcome.ACCEPTED


# ---------------------------------------------------------------------- the constructor

WRONG_OPTIONS: list[tuple[str, Any, type[Exception], str]] = [
    ("curvature_opt", "fisher", ValueError, "one of 'ggn', 'hessian'"),
    ("curvature_opt", None, ValueError, "one of 'ggn', 'hessian'"),
    ("curvature_opt", ["ggn"], ValueError, "one of 'ggn', 'hessian'"),
    ("damping", -1.0, ValueError, "≥ 0"),
    ("damping", NAN, ValueError, "≥ 0"),
    ("damping", INF, ValueError, "finite"),
    ("damping", "1", TypeError, "a number"),
    ("damping", True, TypeError, "a number"),
    ("damping", None, TypeError, "a number"),
    ("damping", 1e-12, ValueError, "within damping_bounds = (1e-08, 1e+06)"),
    ("damping", 1e9, ValueError, "within damping_bounds = (1e-08, 1e+06)"),
    ("adapt_damping", 1, TypeError, "True or False"),
    ("adapt_damping", None, TypeError, "True or False"),
    ("cg_max_iter", 0, ValueError, "≥ 1"),
    ("cg_max_iter", -3, ValueError, "≥ 1"),
    ("cg_max_iter", 2.5, TypeError, "an integer ≥ 1"),
    ("cg_max_iter", True, TypeError, "an integer ≥ 1"),
    ("cg_max_iter", "10", TypeError, "an integer ≥ 1"),
    ("outputs", "logits", TypeError, '"auto" or a function'),
    ("outputs", torch.ones(2), TypeError, '"auto" or a function'),
    ("process_group", "all", ValueError, 'None, "world" or a group'),
    ("process_group", 2, ValueError, 'None, "world" or a group'),
    ("solver", "newton", ValueError, "one of 'cg'"),
    ("solver", 3, TypeError, "callable"),
    ("damping_rule", 1.5, TypeError, "callable"),
    ("backtracking", True, TypeError, "callable"),
    ("line_search", "armijo", TypeError, "callable"),
    ("cg_decay_x0", -0.1, ValueError, "in [0, 1]"),
    ("cg_decay_x0", 1.1, ValueError, "in [0, 1]"),
    ("cg_decay_x0", NAN, ValueError, "in [0, 1]"),
    ("cg_decay_x0", None, TypeError, "a number"),
    ("use_cg_backtracking", 0, TypeError, "True or False"),
    ("use_cg_backtracking", "no", TypeError, "True or False"),
    ("lr", -1.0, ValueError, "≥ 0"),
    ("lr", NAN, ValueError, "≥ 0"),
    ("lr", INF, ValueError, "finite"),
    ("lr", "fast", TypeError, "a number"),
    ("lr", torch.ones(2), TypeError, "a number"),
    ("lr", 1j, TypeError, "a number"),
    ("use_linesearch", "armijo", TypeError, "True or False"),
    ("verbose", 2, TypeError, "True or False"),
    ("weight_decay", -1e-4, ValueError, "≥ 0"),
    ("weight_decay", NAN, ValueError, "≥ 0"),
    ("weight_decay", None, TypeError, "a number"),
    ("martens_conv_crit", 5e-4, TypeError, "True or False"),
    ("nonpos_curv_option", "saddle_free", ValueError, "one of 'stop', 'saddle-free', 'ignore'"),
    ("nonpos_curv_option", None, ValueError, "one of 'stop', 'saddle-free', 'ignore'"),
    ("product_dtype", "bfloat16", TypeError, "a floating-point torch.dtype or None"),
    ("product_dtype", torch.int64, TypeError, "a floating-point torch.dtype or None"),
    ("product_dtype", torch.complex64, TypeError, "a floating-point torch.dtype or None"),
    ("compile", "inductor", TypeError, "True or False"),
    ("damping_bounds", 1e-8, TypeError, "a pair (lower, upper)"),
    ("damping_bounds", (1e-8,), TypeError, "a pair (lower, upper)"),
    ("damping_bounds", (0.0, 1.0), ValueError, "0 < lower ≤ upper"),
    ("damping_bounds", (2.0, 1.0), ValueError, "0 < lower ≤ upper"),
    ("damping_bounds", (1e-8, INF), ValueError, "finite"),
    ("damping_bounds", (NAN, 1.0), ValueError, "≥ 0"),
    ("damping_bounds", ("a", 1.0), TypeError, "a number"),
]


@pytest.mark.parametrize(("name", "value", "error", "allowed"), WRONG_OPTIONS)
def test_constructor_options(name: str, value: Any, error: type[Exception], allowed: str) -> None:
    with pytest.raises(error) as raised:
        HessianFree(plain_network().parameters(), **{name: value})
    message = str(raised.value)
    assert message.startswith(name)
    assert "must" in message
    assert allowed in message
    shown = [repr(value), *(repr(item) for item in value)] if isinstance(value, tuple) else [repr(value)]
    assert any(text in message for text in shown)


def test_every_constructor_option_is_checked() -> None:
    options = [name for name in inspect.signature(HessianFree).parameters if name != "params"]
    assert {name for name, *_ in WRONG_OPTIONS} == set(options)
    wrong: Any = object()
    for name in options:
        with pytest.raises((TypeError, ValueError), match=name):
            HessianFree(plain_network().parameters(), **{name: wrong})


def test_numbers_of_other_kinds_are_welcome() -> None:
    opt = HessianFree(plain_network().parameters(), lr=1, damping=torch.tensor(2.0), weight_decay=0, cg_decay_x0=1)  # type: ignore[arg-type]
    assert opt.param_groups[0]["lr"] == 1.0
    assert opt.param_groups[0]["damping"] == 2.0


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, "empty parameter list"),
        (torch.ones(2), TypeError, "params argument"),
        ([1.0], TypeError, "can only optimize Tensors"),
        ([2.0 * torch.ones(2, requires_grad=True)], ValueError, "non-leaf Tensor"),
    ],
)
def test_parameters(params: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        HessianFree(params)


# ---------------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"lr": -1.0}, ValueError, ["lr must be ≥ 0", "-1.0"]),
        ({"damping": "large"}, TypeError, ["damping must be a number", "'large'"]),
        ({"damping": 1e7}, ValueError, ["damping must be 0 or within damping_bounds", "10000000.0"]),
        ({"weight_decay": NAN}, ValueError, ["weight_decay must be ≥ 0", "nan"]),
    ],
)
def test_options_of_a_group(options: dict[str, Any], error: type[Exception], parts: list[str]) -> None:
    problem = Problem()
    extra = nn.Parameter(torch.ones(1, dtype=torch.float64))
    with refused(problem, error, *parts):
        problem.opt.add_param_group({"params": [extra], **options})
    assert len(problem.opt.param_groups) == 1
    assert extra not in problem.opt.state
    with pytest.raises(error):
        HessianFree([{"params": [extra], **options}])

    for way in ("step", "acc_step"):  # changed later, by hand or by a scheduler
        before = dict(problem.opt.param_groups[0])
        problem.opt.param_groups[0].update(options)
        with pytest.raises(error, match=re.escape(parts[0])):
            getattr(problem, way)()
        problem.opt.param_groups[0].update(before)
        getattr(problem, way)()


def test_the_state_of_another_kind_of_optimizer() -> None:
    problem = Problem()
    own = problem.opt.state_dict()
    problem.opt.load_state_dict(torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=0.9).state_dict())
    before = problem.snapshot()
    with pytest.raises(ValueError, match="must have lr, damping, weight_decay, but one lacks damping;"):
        problem.step()
    assert differences(before, problem.snapshot()) == []
    problem.opt.load_state_dict(own)
    problem.step()


def test_groups_that_are_none() -> None:
    problem = Problem()
    with refused(problem, TypeError, "param_group must be a dict", "list"):
        problem.opt.add_param_group([nn.Parameter(torch.ones(1))])  # type: ignore[arg-type]
    with refused(problem, ValueError, "some parameters appear in more than one parameter group"):
        problem.opt.add_param_group({"params": [problem.model[0].weight]})


# ---------------------------------------------------------------------- arguments of step


def vector(problem: Problem, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.ones(sum(p.numel() for p in problem.model.parameters()), dtype=dtype)


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"forward": 3}, TypeError, ["closure must be callable", "3"]),
        ({"forward": "loss"}, TypeError, ["closure must be callable", "'loss'"]),
        ({"forward": torch.ones(())}, TypeError, ["closure must be callable", "tensor(1.)"]),
        ({"evaluate": 3}, TypeError, ["evaluate must be callable", "3"]),
        ({"evaluate": 0}, TypeError, ["evaluate must be callable", "0"]),
        ({"mvp": torch.eye(2)}, TypeError, ["mvp must be callable", "tensor"]),
        ({"M_func": 2.0}, TypeError, ["M_func must be callable", "2.0"]),
        ({"grad": [1.0, 2.0]}, TypeError, ["grad must be a tensor of shape (42,)", "list"]),
        ({"grad": torch.ones(41)}, ValueError, ["grad must be", "shape (42,)", "not of shape (41,)"]),
        ({"grad": torch.ones(42, 1)}, ValueError, ["grad must be", "shape (42,)", "not of shape (42, 1)"]),
        ({"grad": torch.ones(42).long()}, ValueError, ["grad must be a real floating-point", "torch.int64"]),
        ({"grad": torch.ones(42) + 0j}, ValueError, ["grad must be a real floating-point", "torch.complex64"]),
        ({"grad": torch.ones(42, device="meta")}, ValueError, ["grad must be", "on cpu", "on meta"]),
        ({"test_deterministic": 1}, TypeError, ["test_deterministic must be True or False", "1"]),
        ({"weight": -1.0}, ValueError, ["weight must be", "≥ 0"]),
        ({"weight": 0.0}, ValueError, ["weight must not be 0"]),
        ({"evaluate_weight": "1"}, TypeError, ["evaluate_weight must be a number"]),
        ({"closure": len}, TypeError, ["closure and forward"]),
    ],
)
def test_arguments_of_step(arguments: dict[str, Any], error: type[Exception], parts: list[str]) -> None:
    problem = Problem()
    with refused(problem, error, *parts):
        problem.step(**arguments)


def test_the_number_of_parameters_is_that_of_the_trainable_ones() -> None:
    problem = Problem()
    problem.model[0].requires_grad_(False)
    with refused(problem, ValueError, "shape (22,)", "not of shape (42,)"):
        problem.step(grad=vector(problem))


@pytest.mark.parametrize("name", ["mvp", "M_func"])
@pytest.mark.parametrize(
    ("result", "error", "parts"),
    [
        (lambda v: None, TypeError, ["tensor of shape (42,)", "NoneType"]),
        (lambda v: v.tolist(), TypeError, ["tensor of shape (42,)", "list"]),
        (lambda v: v[:-1], ValueError, ["shape (42,)", "not of shape (41,)"]),
        (lambda v: v.unsqueeze(1), ValueError, ["shape (42,)", "not of shape (42, 1)"]),
        (lambda v: v.long(), ValueError, ["floating-point", "torch.int64"]),
        (lambda v: v.to("meta"), ValueError, ["on cpu", "on meta"]),
    ],
)
def test_results_of_the_users_products(name: str, result: Any, error: type[Exception], parts: list[str]) -> None:
    problem = Problem()
    with refused(problem, error, f"the result of {name} must be", *parts):
        problem.step(**{name: result})


# ---------------------------------------------------------------------- arguments of acc_step


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        *(
            (arguments, error, [f"{name}{place}", *parts])
            for name in ("loss_datalist", "grad_datalist", "mvp_datalist")
            for place, arguments, error, parts in [
                (" must", {name: []}, ValueError, ["at least one (inputs, targets)"]),
                (" must", {name: 3}, TypeError, ["a list of (inputs, targets)", "3"]),
                ("[0] must", {name: batch()}, TypeError, ["a pair (inputs, targets)", "Tensor"]),
                ("[1] must", {name: [batch(), (1, 2, 3)]}, ValueError, ["a pair (inputs, targets)", "3"]),
            ]
        ),
        ({"loss_datalist": None}, TypeError, ["loss_datalist must be a list", "None"]),
        ({"reduction": "average"}, ValueError, ["reduction must be", '"mean", "sum" or a function', "'average'"]),
        ({"reduction": None}, ValueError, ["reduction must be", "None"]),
        ({"reduction": lambda targets: -1.0}, ValueError, ["the weight that reduction returns must be ≥ 0", "-1.0"]),
        ({"reduction": lambda targets: NAN}, ValueError, ["the weight that reduction returns must be ≥ 0", "nan"]),
        ({"reduction": lambda targets: None}, TypeError, ["the weight that reduction returns must be", "None"]),
        ({"reduction": lambda targets: 0.0}, ValueError, ["all micro-batches the weight 0"]),
        ({"grad_datalist": [(batch()[0], None)]}, TypeError, ['reduction="mean"', "tensors", "NoneType"]),
        ({"grad_datalist": [(batch()[0], torch.ones(()))]}, TypeError, ['reduction="mean"', "first dimension"]),
        ({"micro_batches_in_memory": 0}, ValueError, ["micro_batches_in_memory must be ≥ 1", "0"]),
        ({"micro_batches_in_memory": 1.5}, TypeError, ["micro_batches_in_memory must be an integer", "1.5"]),
        ({"micro_batches_in_memory": None}, TypeError, ["micro_batches_in_memory must be an integer", "None"]),
        ({"M_func": "none"}, TypeError, ["M_func must be callable", "'none'"]),
        ({"test_deterministic": "yes"}, TypeError, ["test_deterministic must be True or False", "'yes'"]),
    ],
)
def test_arguments_of_acc_step(arguments: dict[str, Any], error: type[Exception], parts: list[str]) -> None:
    problem = Problem()
    with refused(problem, error, *parts):
        problem.acc_step(**arguments)


def test_model_and_loss_func_of_acc_step() -> None:
    problem = Problem()
    with refused(problem, TypeError, "model must be callable", "None"):
        problem.opt.acc_step(None, mse_loss, problem.evaluation)
    with refused(problem, TypeError, "loss_func must be callable", "'mse'"):
        problem.opt.acc_step(problem.model, "mse", problem.evaluation)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- arguments of the helpers


@pytest.mark.parametrize(
    ("name", "value", "error", "parts"),
    [
        ("model", lambda x: x, TypeError, ["model must be a torch Module", "function"]),
        ("loss_func", None, TypeError, ["loss_func must be callable", "None"]),
        ("inputs", [1.0], TypeError, ["inputs must be a torch Tensor", "list"]),
        ("targets", None, TypeError, ["targets must be a torch Tensor", "NoneType"]),
        ("targets", torch.ones(3, 2), ValueError, ["inputs and targets", "8 and 3"]),
        ("reduction", "none", ValueError, ["reduction must be one of 'mean', 'sum'", "'none'"]),
        ("reduction", len, ValueError, ["reduction must be one of 'mean', 'sum'", "len"]),
        ("exponent", 0.0, ValueError, ["exponent must be > 0 and at most 1", "0.0"]),
        ("exponent", -0.5, ValueError, ["exponent must be", "-0.5"]),
        ("exponent", 1.5, ValueError, ["exponent must be", "1.5"]),
        ("exponent", "3/4", TypeError, ["exponent must be a number", "'3/4'"]),
    ],
)
def test_arguments_of_get_preconditioner(name: str, value: Any, error: type[Exception], parts: list[str]) -> None:
    problem = Problem(plain_network())
    inputs, targets = batch(8)
    good: dict[str, Any] = {
        "model": problem.model,
        "loss_func": mse_loss,
        "inputs": inputs,
        "targets": targets,
        "reduction": "mean",
    }
    problem.opt.get_preconditioner(**good)
    with refused(problem, error, *parts):
        problem.opt.get_preconditioner(**{**good, name: value})


def test_get_preconditioner_of_no_samples() -> None:
    problem = Problem(plain_network())
    with refused(problem, ValueError, "inputs and targets", "at least one", "0"):
        problem.opt.get_preconditioner(problem.model, mse_loss, torch.ones(0, 3), torch.ones(0, 2), "mean")


@pytest.mark.parametrize(
    ("name", "value", "error", "parts"),
    [
        ("model", 3, TypeError, ["model must be callable", "3"]),
        ("loss_func", "mse", TypeError, ["loss_func must be callable", "'mse'"]),
        ("datalist", [batch()], ValueError, ["datalist must have at least two", "1"]),
        ("datalist", [], ValueError, ["datalist must have at least one"]),
        ("datalist", None, TypeError, ["datalist must be a list", "None"]),
        ("reduction", "average", ValueError, ["reduction must be", "'average'"]),
    ],
)
def test_arguments_of_test_reduction(name: str, value: Any, error: type[Exception], parts: list[str]) -> None:
    problem = Problem(plain_network())
    good: dict[str, Any] = {
        "model": problem.model,
        "loss_func": mse_loss,
        "datalist": problem.gradient,
        "reduction": "mean",
    }
    problem.opt.test_reduction(**good)
    with refused(problem, error, *parts):
        problem.opt.test_reduction(**{**good, name: value})


# ---------------------------------------------------------------------- closures that return something else

Returned = Callable[[Tensor, Tensor], Any]

NOT_A_LOSS: list[tuple[str, Returned, type[Exception], list[str]]] = [
    ("a float", lambda loss, z: float(loss.detach()), TypeError, ["scalar loss tensor or (loss, outputs)", "float"]),
    ("nothing", lambda loss, z: None, TypeError, ["scalar loss tensor or (loss, outputs)", "NoneType"]),
    ("three things", lambda loss, z: (loss, z, z), TypeError, ["a tuple of 3: (Tensor, Tensor, Tensor)"]),
    ("a list", lambda loss, z: [loss, z], TypeError, ["scalar loss tensor or (loss, outputs)", "list"]),
    ("a float and outputs", lambda loss, z: (float(loss.detach()), z), TypeError, ["(float, Tensor)"]),
    ("outputs first", lambda loss, z: (z, loss), ValueError, ["one real floating-point number", "shape (16, 2)"]),
    ("one loss per sample", lambda loss, z: (z.sum(dim=1), z), ValueError, ["one real", "shape (16,)"]),
    ("an integer loss", lambda loss, z: (loss.detach().long(), z), ValueError, ["floating-point", "torch.int64"]),
    ("a complex loss", lambda loss, z: (loss + 0j, z), ValueError, ["real", "torch.complex128"]),
    ("an empty loss", lambda loss, z: (loss.reshape(1)[:0], z), ValueError, ["one real", "shape (0,)"]),
]
NO_GRADIENT: list[tuple[str, Returned, type[Exception], list[str]]] = [
    ("a detached loss", lambda loss, z: (loss.detach(), z), ValueError, ["no graph", "detached"]),
    ("a constant", lambda loss, z: (torch.ones(()), z), ValueError, ["no graph", "trainable parameter"]),
]
NO_OUTPUTS: list[tuple[str, Returned, type[Exception], list[str]]] = [
    ("a root", lambda loss, z: loss.sqrt(), ValueError, ["Sqrt is neither", 'curvature_opt="hessian"']),
    ("no outputs", lambda loss, z: (loss.sqrt(), None), ValueError, ["Return (loss, outputs)"]),
    (
        "detached outputs",
        lambda loss, z: (loss, z.detach()),
        ValueError,
        ["with their graph", "Return (loss, outputs)"],
    ),
    (
        "other outputs",
        lambda loss, z: (loss, z.clone()),
        ValueError,
        ["outputs that the loss was computed from", "these very tensors"],
    ),
]


def returning(problem: Problem, result: Returned, name: str) -> Callable[[], Any]:
    def faulty() -> Any:
        outputs = problem.model(problem.gradient[0][0])
        return result(mse_loss(outputs, problem.gradient[0][1]), outputs)

    faulty.__name__ = name
    return faulty


def cases(*tables: list[tuple[str, Returned, type[Exception], list[str]]]) -> pytest.MarkDecorator:
    rows = [pytest.param(*row, id=name) for table in tables for name, *row in table]
    return pytest.mark.parametrize(("result", "error", "parts"), rows)


@cases(NOT_A_LOSS, NO_GRADIENT, NO_OUTPUTS)
def test_what_forward_returns(result: Returned, error: type[Exception], parts: list[str]) -> None:
    problem = Problem()
    with refused(problem, error, *parts):
        problem.step(forward=returning(problem, result, "my_closure"))


@cases(NOT_A_LOSS)
def test_what_evaluate_returns(result: Returned, error: type[Exception], parts: list[str]) -> None:
    problem = Problem()
    with refused(problem, error, "my_closure()", *parts):
        problem.step(evaluate=returning(problem, result, "my_closure"))


@cases(NOT_A_LOSS, NO_GRADIENT)
def test_what_forward_returns_for_the_hessian(result: Returned, error: type[Exception], parts: list[str]) -> None:
    problem = Problem(curvature_opt="hessian")
    with refused(problem, error, "my_closure()", *parts):
        problem.step(forward=returning(problem, result, "my_closure"))


@pytest.mark.parametrize("way", ["step", "acc_step"])
def test_a_closure_under_no_grad(way: str) -> None:
    problem = Problem()

    @torch.no_grad()
    def model(x: Tensor) -> Tensor:
        return problem.model(x)

    with refused(problem, ValueError, "no graph", "torch.no_grad()"):
        if way == "step":
            problem.step(forward=closure(model, problem.gradient[0]))
        else:
            problem.opt.acc_step(model, mse_loss, problem.gradient)


@pytest.mark.parametrize("curvature_opt", ["ggn", "hessian"])
def test_the_loss_of_another_model(curvature_opt: str) -> None:
    """As after a model has been rebuilt or copied: the optimizer holds parameters that nothing uses."""
    problem = Problem(curvature_opt=curvature_opt)
    other = plain_network(seed=5)
    with refused(problem, ValueError, "does not depend on any"):
        problem.step(forward=closure(other, problem.gradient[0]))


def test_a_loss_function_that_does_not_reduce() -> None:
    problem = Problem()
    with refused(problem, ValueError, "one real floating-point number", "shape (16, 2)"):
        problem.opt.acc_step(problem.model, nn.MSELoss(reduction="none"), problem.gradient)


def test_a_loss_of_one_entry_is_a_loss() -> None:
    expected, problem = Problem(), Problem()
    torch.manual_seed(0)
    returned = expected.step()
    torch.manual_seed(0)

    def shaped(forward: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], tuple[Tensor, Tensor]]:
        def again() -> tuple[Tensor, Tensor]:
            loss, outputs = forward()
            return loss.reshape(1, 1), outputs

        return again

    assert problem.step(forward=shaped(problem.forward), evaluate=shaped(problem.evaluate)) == returned


# ---------------------------------------------------------------------- parameters that cannot be


class Two(nn.Module):
    """Two parameters, the second of which the test chooses."""

    def __init__(self, second: Tensor) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(2))
        self.second = nn.Parameter(second)


def impossible(second: Tensor, error: type[Exception], *parts: str) -> None:
    model = Two(second)
    opt = HessianFree(model.parameters())
    calls: list[int] = []

    def forward() -> tuple[Tensor, Tensor]:
        calls.append(1)
        outputs = 2.0 * model.first
        return outputs.square().sum(), outputs

    for take_step in (
        lambda: opt.step(forward),
        lambda: opt.acc_step(lambda x: x * model.first, mse_loss, [(torch.ones(3, 2), torch.ones(3, 2))]),
    ):
        with pytest.raises(error) as raised:
            take_step()
        assert [part for part in parts if part not in str(raised.value)] == []
    assert calls == []
    assert model.first.tolist() == [1.0, 1.0]
    model.second.requires_grad_(False)  # frozen, it is none of the optimizer's business
    opt.step(forward)
    assert opt.last_step.outcome is Outcome.ACCEPTED


def test_parameters_on_several_devices() -> None:
    impossible(torch.ones(3, device="meta"), ValueError, "one device", "on cpu", "on meta")


def test_a_complex_parameter() -> None:
    impossible(torch.ones(3, 2) + 0j, TypeError, "complex", "(3, 2)", "torch.view_as_real")


def test_a_sparse_parameter() -> None:
    impossible(torch.eye(3).to_sparse(), TypeError, "(3, 3)", "torch.strided", "sparse")


@pytest.mark.parametrize("way", ["step", "acc_step"])
def test_a_scripted_module(way: str) -> None:
    """TorchScript shows none of its operations, so products come from the graph; trial points reach it all the same."""
    problem, plain = Problem(plain_network()), Problem(plain_network())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(problem.model)
    for _ in range(3):
        if way == "step":
            data = plain.gradient[0]
            assert problem.step(forward=closure(scripted, data), evaluate=None) == pytest.approx(
                plain.step(forward=closure(plain.model, data), evaluate=None), rel=1e-9
            )
        else:
            assert problem.opt.acc_step(scripted, mse_loss, problem.gradient) == pytest.approx(
                plain.opt.acc_step(plain.model, mse_loss, plain.gradient), rel=1e-9
            )
        assert problem.opt.last_step.outcome is Outcome.ACCEPTED


def test_what_is_computed_before_the_closure_is_called() -> None:
    problem = Problem(plain_network())
    regulariser = problem.model[0].weight.square().sum()

    def forward() -> tuple[Tensor, Tensor]:
        loss, outputs = problem.forward()
        return loss + regulariser, outputs

    with refused(problem, RuntimeError, "computed from it before the closure was called", "(4, 3)"):
        problem.step(forward=forward)
