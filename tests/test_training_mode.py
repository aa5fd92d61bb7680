"""Networks as they are while they are trained: within one step every evaluation sees one and the same network."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import dropout, mse_loss
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from latephase import HessianFree, Outcome
from tests.contract import (
    Batch,
    Problem,
    Spy,
    batch,
    closure,
    differences,
    ggn,
    gradient,
    identity,
    network,
    plain_network,
    values,
)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Installed between the optimizer and conjugate gradients."""
    return Spy(monkeypatch)


# ---------------------------------------------------------------------- BatchNorm


def norm(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers()}


@pytest.mark.parametrize("way", ["step", "acc_step"])
@pytest.mark.parametrize("options", [{}, {"curvature_opt": "hessian"}, {"use_linesearch": False}])
def test_running_statistics_move_once_per_step(way: str, options: dict[str, Any]) -> None:
    problem = Problem(**options)
    for number in range(1, 4):
        once = copy.deepcopy(problem.model)
        rng = torch.get_rng_state()
        once(problem.gradient[0][0])  # one plain forward pass at θ, on the (first micro-batch of the) model batch
        torch.set_rng_state(rng)
        getattr(problem, way)()
        assert problem.opt.last_step.counts.losses >= 2
        assert differences(norm(once), norm(problem.model)) == []
        assert int(problem.model[1].get_buffer("num_batches_tracked")) == number


def test_running_statistics_of_an_evaluation_network_stay() -> None:
    """B̄ may be judged by another module, such as the network in eval mode or with other heads."""
    problem = Problem()
    other = nn.Sequential(problem.model, nn.BatchNorm1d(2).double())
    before = norm(other[1])
    problem.step(evaluate=closure(other, problem.evaluation[0]))
    assert differences(before, norm(other[1])) == []
    assert int(problem.model[1].get_buffer("num_batches_tracked")) == 1


def test_running_statistics_stay_in_eval_mode() -> None:
    problem = Problem()
    problem.model.eval()
    before = norm(problem.model)
    problem.step()
    assert problem.opt.last_step.outcome is Outcome.ACCEPTED
    assert differences(before, norm(problem.model)) == []


def test_helpers_leave_statistics_and_random_numbers_alone() -> None:
    problem = Problem()
    problem.model[1].eval()
    before = problem.snapshot()
    inputs, targets = problem.gradient[0]
    problem.opt.get_preconditioner(problem.model, mse_loss, inputs, targets, "mean")
    assert differences(before, problem.snapshot()) == []
    problem.model.train()
    with pytest.raises(RuntimeError):  # each micro-batch has its own statistics
        problem.opt.test_reduction(problem.model, mse_loss, problem.gradient, "mean")
    assert differences(before, problem.snapshot()) == []


class Counting(nn.Module):
    """Buffers in less usual ways: one replaced at each call instead of written, one made at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2).double()
        self.calls: Tensor
        self.largest: Tensor | None
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("largest", None)

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls = self.calls + 1
        if self.largest is None:
            self.largest = inputs.abs().max()
        return self.linear(inputs)


def test_buffers_that_are_replaced_are_put_back() -> None:
    model = Counting()
    opt = HessianFree(model.parameters())
    model_batch, evaluation_batch = batch(12, seed=1), batch(12, seed=2)
    for number in range(1, 3):
        opt.step(closure(model, model_batch), evaluate=closure(model, evaluation_batch))
        assert opt.last_step.outcome is Outcome.ACCEPTED
        assert int(model.calls) == number

    calls, opt = model.calls, HessianFree(model.parameters())

    def interrupted() -> tuple[Tensor, Tensor]:
        model(model_batch[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opt.step(interrupted)
    assert model.calls is calls


def test_a_buffer_that_the_first_call_makes_is_that_of_the_first_call() -> None:
    model = Counting()
    opt = HessianFree(model.parameters())

    def interrupted() -> tuple[Tensor, Tensor]:
        model(batch(12, seed=1)[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opt.step(interrupted)
    assert model.largest is None

    model_batch, evaluation_batch = batch(12, seed=1), (10.0 * batch(12, seed=2)[0], batch(12, seed=2)[1])
    opt.step(closure(model, model_batch), evaluate=closure(model, evaluation_batch))
    assert model.largest == model_batch[0].abs().max()


# ---------------------------------------------------------------------- dropout


def test_dropout_the_quadratic_model_is_one_fixed_matrix(spy: Spy) -> None:
    problem = Problem()
    for step in range(2):
        rng, theta = torch.get_rng_state(), copy.deepcopy(problem.model)
        damping = problem.opt.param_groups[0]["damping"]
        problem.step()
        after = torch.get_rng_state()
        A = spy.A[step]
        assert torch.equal(A, spy.A_again[step])
        torch.testing.assert_close(A, A.T, rtol=1e-10, atol=1e-12)
        # It is that of the network with the mask that a plain forward pass would have drawn, and so is the gradient.
        torch.set_rng_state(rng)
        torch.testing.assert_close(spy.b[step], -gradient(theta, problem.gradient[0]), rtol=1e-9, atol=1e-12)
        torch.set_rng_state(rng)
        C = ggn(theta, problem.gradient[0])
        torch.testing.assert_close(A, C + damping * identity(C), rtol=1e-9, atol=1e-12)
        torch.set_rng_state(after)
    assert not torch.allclose(spy.A[0], spy.A[1])


@pytest.mark.parametrize("memory", [1, 2, 3])
def test_dropout_the_quadratic_model_of_micro_batches_is_one_fixed_matrix(spy: Spy, memory: int) -> None:
    """However many graphs are kept, and however often the others are made again."""
    problem = Problem()
    torch.manual_seed(5)
    problem.acc_step(micro_batches_in_memory=memory)
    A = spy.A[0]
    assert torch.equal(A, spy.A_again[0])
    torch.testing.assert_close(A, A.T, rtol=1e-10, atol=1e-12)

    everything = Problem()
    torch.manual_seed(5)
    everything.acc_step(micro_batches_in_memory=100)
    torch.testing.assert_close(A, spy.A[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(spy.b[0], spy.b[1], rtol=1e-10, atol=1e-12)


def test_dropout_micro_batches_have_masks_of_their_own() -> None:
    """Else a large batch would see as few masks as a small one."""
    masks: list[Tensor] = []
    model = nn.Sequential(nn.Linear(3, 40), nn.Dropout(0.5), nn.Linear(40, 2)).double()

    def loss_func(outputs: Tensor, targets: Tensor) -> Tensor:
        return mse_loss(outputs, targets)

    model[1].register_forward_hook(lambda module, args, output: masks.append(output.detach() != 0.0))
    opt = HessianFree(model.parameters())
    same = batch(4, seed=1)
    opt.acc_step(model, loss_func, [batch(4, seed=2)], grad_datalist=[same, (same[0].clone(), same[1])])
    assert not torch.equal(masks[0], masks[1])


def test_dropout_every_evaluation_of_a_step_sees_the_same_mask() -> None:
    """Seen in `evaluate`, whose data are as many as those of the model batch."""
    problem = Problem(plain_network())

    def noisy(data: Batch, keep: list[Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
        def forward() -> tuple[Tensor, Tensor]:
            mask = dropout(torch.ones(16, 3, dtype=torch.float64), 0.5)
            keep.append(mask)
            outputs = problem.model(data[0] * mask)
            return mse_loss(outputs, data[1]), outputs

        return forward

    steps = []
    for _ in range(3):
        seen: list[Tensor] = []
        first: list[Tensor] = []
        rng = torch.get_rng_state()
        problem.opt.step(noisy(batch(16, seed=1), first), evaluate=noisy(batch(16, seed=2), seen))
        after = torch.get_rng_state()
        torch.set_rng_state(rng)
        expected = dropout(torch.ones(16, 3, dtype=torch.float64), 0.5)
        torch.set_rng_state(after)
        assert len(seen) == problem.opt.last_step.counts.losses >= 2
        assert all(torch.equal(mask, expected) for mask in [first[0], *seen])
        steps.append(expected)
    assert not torch.equal(steps[0], steps[1])
    assert not torch.equal(steps[1], steps[2])


@pytest.mark.parametrize("way", ["step", "acc_step"])
def test_the_random_number_stream_goes_on_as_after_one_forward_pass(way: str) -> None:
    problem = Problem()
    for _ in range(2):
        rng = torch.get_rng_state()
        copy.deepcopy(problem.model)(problem.gradient[0][0])
        expected = torch.get_rng_state()
        assert not torch.equal(rng, expected)
        torch.set_rng_state(rng)
        getattr(problem, way)()
        assert torch.equal(torch.get_rng_state(), expected)


def test_the_returned_loss_is_that_of_the_network_of_the_step() -> None:
    problem = Problem()
    rng = torch.get_rng_state()
    returned = problem.step()
    assert problem.opt.last_step.outcome is Outcome.ACCEPTED
    torch.set_rng_state(rng)
    loss, _ = closure(copy.deepcopy(problem.model), problem.evaluation[0])()
    assert returned == pytest.approx(float(loss.detach()), rel=1e-12)


# ---------------------------------------------------------------------- layers with a life of their own


@pytest.mark.parametrize("curvature_opt", ["ggn", "hessian"])
def test_spectral_norm_iterates_once_per_step(spy: Spy, curvature_opt: str) -> None:
    model = plain_network()
    parametrizations.spectral_norm(model[0])
    problem = Problem(model, curvature_opt=curvature_opt)
    for _ in range(2):
        once = copy.deepcopy(model)
        once(problem.gradient[0][0])
        problem.step()
        assert problem.opt.last_step.outcome is Outcome.ACCEPTED
        assert differences(norm(once), norm(model)) == []
    for A, again in zip(spy.A, spy.A_again, strict=True):
        assert torch.equal(A, again)
        torch.testing.assert_close(A, A.T, rtol=1e-9, atol=1e-11)


def test_spectral_norm_as_a_hook() -> None:
    model = plain_network()
    torch.nn.utils.spectral_norm(model[0])
    problem = Problem(model)
    for _ in range(2):
        problem.step()
        assert problem.opt.last_step.outcome is Outcome.ACCEPTED
    assert set(dict(model.named_parameters())) == {"0.bias", "0.weight_orig", "2.weight", "2.bias"}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("weight_norm", [parametrizations.weight_norm, torch.nn.utils.weight_norm])
def test_weight_norm(spy: Spy, weight_norm: Callable[[nn.Module], nn.Module]) -> None:
    model = plain_network()
    weight_norm(model[0])
    problem = Problem(model)
    C = ggn(model, problem.gradient[0])
    problem.step()
    assert problem.opt.last_step.outcome is Outcome.ACCEPTED
    torch.testing.assert_close(spy.A[0], C + identity(C), rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------- closures as people write them


def hidden_by_checkpoint(model: nn.Sequential, inputs: Tensor, **options: Any) -> Tensor:
    return model[2](checkpoint(lambda x: model[1](model[0](x)), inputs, **options))


@pytest.mark.parametrize("curvature_opt", ["ggn", "hessian"])
def test_checkpointing_changes_nothing(spy: Spy, curvature_opt: str) -> None:
    finals = []
    for checkpointed in (False, True):
        problem = Problem(plain_network(), curvature_opt=curvature_opt)
        hidden = partial(hidden_by_checkpoint, problem.model, use_reentrant=False)
        run = hidden if checkpointed else problem.model

        for _ in range(2):
            problem.step(forward=closure(run, problem.gradient[0]), evaluate=closure(run, problem.evaluation[0]))
        finals.append([p.detach() for p in problem.model.parameters()])
    torch.testing.assert_close(spy.A[0], spy.A[2], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(finals[0], finals[1], rtol=1e-8, atol=1e-10)


def test_reentrant_checkpointing_is_refused() -> None:
    """It drops the gradients of what it hides, silently."""
    problem = Problem(plain_network())
    before = problem.snapshot()

    def run(x: Tensor) -> Tensor:
        return hidden_by_checkpoint(problem.model, x.clone().requires_grad_(), use_reentrant=True)

    with pytest.raises(RuntimeError, match="use_reentrant"):
        problem.step(forward=closure(run, problem.gradient[0]))
    assert differences(before, problem.snapshot()) == []


@pytest.mark.parametrize("curvature_opt", ["ggn", "hessian"])
def test_a_loss_that_differentiates_inside(spy: Spy, curvature_opt: str) -> None:
    """The residual of u″ = −sin, as physics-informed networks have it. The last bias has no influence on it."""
    model = plain_network(1, 6, 1)
    points = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64).unsqueeze(1)

    def residual(points: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        def forward() -> tuple[Tensor, Tensor]:
            x = points.clone().requires_grad_()
            u = model(x)
            (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
            r = ddu + torch.sin(x)
            return r.square().mean(), r

        return forward

    opt = HessianFree(model.parameters(), curvature_opt=curvature_opt)
    bias = model[2].bias.detach().clone()
    losses = []
    for _ in range(4):
        losses.append(opt.step(residual(points), evaluate=residual(points[:-1] + 0.1)))
        assert opt.last_step.outcome is Outcome.ACCEPTED
    assert losses == sorted(losses, reverse=True)
    assert torch.equal(bias, model[2].get_parameter("bias"))
    for A, again in zip(spy.A, spy.A_again, strict=True):
        assert torch.equal(A, again)
        torch.testing.assert_close(A, A.T, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_an_ordinary_training_closure(set_to_none: bool) -> None:
    """`zero_grad` and `backward` do nothing there: the step is the same."""
    plain = Problem(plain_network())
    plain.step(evaluate=None)

    problem = Problem(plain_network())
    model, opt = problem.model, problem.opt
    inputs, targets = problem.gradient[0]

    def ordinary() -> tuple[Tensor, Tensor]:
        opt.zero_grad(set_to_none=set_to_none)
        model.zero_grad()
        outputs = model(inputs)
        loss = mse_loss(outputs, targets)
        loss.backward()
        model.zero_grad(set_to_none=set_to_none)
        return loss, outputs

    problem.opt.step(ordinary)
    assert opt.last_step.outcome is Outcome.ACCEPTED
    assert differences(plain.snapshot()["gradients"], problem.snapshot()["gradients"]) == []
    for p, q in zip(model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_a_warning_of_the_closure_is_shown_once() -> None:
    problem = Problem(plain_network())

    def warning() -> tuple[Tensor, Tensor]:
        warnings.warn("from the closure", UserWarning, stacklevel=1)
        return problem.forward()

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        problem.step(forward=warning, evaluate=None)  # finds out how to compute products
        shown.clear()
        warnings.simplefilter("default")
        for _ in range(3):
            problem.step(forward=warning, evaluate=None)
    assert [str(w.message) for w in shown] == ["from the closure"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_the_callers_gradient_mode_does_not_matter(mode: Callable[[], Any]) -> None:
    expected, problem = Problem(plain_network()), Problem(plain_network())
    expected.step()
    with mode():
        enabled = torch.is_grad_enabled()
        problem.step()
        assert torch.is_grad_enabled() is enabled
    assert differences(values(expected.model, expected.opt), values(problem.model, problem.opt)) == []


@pytest.mark.parametrize("way", ["step", "acc_step"])
@pytest.mark.parametrize("options", [{}, {"test_deterministic": True}])
def test_the_callers_default_device_does_not_matter(way: str, options: dict[str, Any]) -> None:
    """Nothing is put where the caller puts new tensors; on the device "meta" it would have no values."""
    expected, problem = Problem(), Problem()
    torch.manual_seed(0)
    getattr(expected, way)(**options)
    torch.manual_seed(0)
    with torch.device("meta"):
        getattr(problem, way)(**options)
    assert differences(values(expected.model, expected.opt), values(problem.model, problem.opt)) == []


def test_closures_that_call_the_model_functionally() -> None:
    expected, problem = Problem(plain_network()), Problem(plain_network())
    expected.step()

    def run(x: Tensor) -> Tensor:
        return functional_call(problem.model, dict(problem.model.named_parameters()), (x,))

    problem.step(
        forward=closure(run, problem.gradient[0]),
        evaluate=closure(run, problem.evaluation[0]),
    )
    assert differences(values(expected.model, expected.opt), values(problem.model, problem.opt)) == []


# ---------------------------------------------------------------------- compiled, half precision


@pytest.fixture
def quiet_compiler() -> Iterator[None]:
    """Importing the compiler warns about its own ways to do so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("quiet_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("curvature_opt", ["ggn", "hessian"])
def test_a_compiled_module(backend: str, curvature_opt: str) -> None:
    expected = Problem(plain_network(), curvature_opt=curvature_opt)
    problem = Problem(plain_network(), curvature_opt=curvature_opt)
    compiled = torch.compile(problem.model, backend=backend)
    for _ in range(2):
        expected.step()
        compiled(problem.gradient[0][0]).sum()  # compiled by now, for the parameters themselves
        problem.step(
            forward=closure(compiled, problem.gradient[0]),
            evaluate=closure(compiled, problem.evaluation[0]),
        )
        assert problem.opt.last_step.outcome is Outcome.ACCEPTED
    for p, q in zip(problem.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    calls = []
    torch.compile(lambda x: x + 1.0, backend=lambda graph, inputs: calls.append(1) or graph)(torch.ones(()))
    assert calls  # the compiler is on again


@pytest.mark.parametrize("curvature_opt", ["ggn", "hessian"])
def test_autocast_in_the_closure(curvature_opt: str) -> None:
    model = plain_network().float()
    opt = HessianFree(model.parameters(), curvature_opt=curvature_opt)
    inputs, targets = (t.float() for t in batch(32, seed=1))

    def forward() -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(inputs)
            assert outputs.dtype is torch.bfloat16
        return mse_loss(outputs.float(), targets), outputs

    first = float(forward()[0].detach())
    for _ in range(4):
        last = opt.step(forward)
        assert not opt.last_step.outcome.undone
    assert last < 0.7 * first
    assert all(p.dtype is torch.float32 for p in model.parameters())
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("curvature_opt", ["ggn", "hessian"])
def test_parameters_of_half_precision(curvature_opt: str, dtype: torch.dtype) -> None:
    model = plain_network().to(dtype)
    opt = HessianFree(model.parameters(), curvature_opt=curvature_opt)
    inputs, targets = batch(32, seed=1)

    def forward() -> tuple[Tensor, Tensor]:
        outputs = model(inputs.to(dtype))
        return mse_loss(outputs.float(), targets.float()), outputs

    first = float(forward()[0].detach())
    for _ in range(4):
        last = opt.step(forward)
        assert not opt.last_step.outcome.undone
    assert last < 0.7 * first
    assert last == pytest.approx(float(forward()[0].detach()), rel=1e-6)  # the loss of the rounded parameters
    assert all(p.dtype is dtype for p in model.parameters())


def test_parameters_of_several_precisions() -> None:
    model = plain_network()
    model[0].float()
    opt = HessianFree(model.parameters())
    inputs, targets = batch(32, seed=1)

    def forward() -> tuple[Tensor, Tensor]:
        outputs = model[2](model[1](model[0](inputs.float())).double())
        return mse_loss(outputs, targets), outputs

    first = float(forward()[0].detach())
    for _ in range(4):
        last = opt.step(forward)
        assert opt.last_step.outcome is Outcome.ACCEPTED
    assert last < 0.7 * first
    assert [p.dtype for p in model.parameters()] == [torch.float32] * 2 + [torch.float64] * 2
    assert last == pytest.approx(float(forward()[0].detach()), rel=1e-6)


def test_dropout_and_batch_norm_with_everything_else_on(spy: Spy) -> None:
    """Weight decay, micro-batches, a preconditioner: still one network per step, and no trace of the trials."""
    problem = Problem(network(), weight_decay=0.1)
    n = sum(p.numel() for p in problem.model.parameters())
    scale = torch.linspace(0.5, 1.0, n, dtype=torch.float64)
    problem.acc_step(M_func=lambda v: scale * v, micro_batches_in_memory=2)
    assert torch.equal(spy.A[0], spy.A_again[0])
    assert int(problem.model[1].get_buffer("num_batches_tracked")) == 1
