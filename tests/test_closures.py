"""Steps with closures as people write them: what they do besides a loss happens once, or is refused by name."""

from __future__ import annotations

import contextlib
import copy
import gc
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from latephase import HessianFree, Outcome
from latephase.curvature import CurvatureError, CurvatureWarning, ggn, ladder
from latephase.curvature.dispatch_state import unchanged_dispatch_state
from latephase.watching import function_modes
from tests.curvature.networks import forget_choices

N = 20


@pytest.fixture(autouse=True)
def _no_memory() -> None:
    forget_choices()


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 4), torch.randn(N, 1)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def closure(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    def forward() -> tuple[Tensor, Tensor]:
        z = model(x)
        return F.mse_loss(z, y), z

    return forward


# ---------------------------------------------------------------------- trial points


def adaptive_weights(m: nn.Sequential, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Terms weighted by statistics of their gradients, as for physics-informed networks."""
    z = m(x)
    a, b = F.mse_loss(z, y), z[:2].pow(2).mean()
    ga, gb = (torch.autograd.grad(loss, m[2].get_parameter("weight"), retain_graph=True)[0] for loss in (a, b))
    return a + (ga.abs().max() / gb.abs().mean()).detach() * b, z


def adapted(m: nn.Sequential, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss after a step of gradient descent on other data (MAML)."""
    params = dict(m.named_parameters())
    grads = torch.autograd.grad(F.mse_loss(m(x[:10]), y[:10]), list(params.values()), create_graph=True)
    moved = {name: p - 0.1 * g for (name, p), g in zip(params.items(), grads, strict=True)}
    z = torch.func.functional_call(m, moved, (x[10:],))
    return F.mse_loss(z, y[10:]), z


def penalised(m: nn.Sequential, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """With a penalty on the gradient in the inputs."""
    x = x.clone().requires_grad_()
    z = m(x)
    (slope,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    return F.mse_loss(z, y) + 0.1 * slope.pow(2).mean(), (z, slope)


def retained(m: nn.Sequential, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    h = m[1](m[0](x))
    h.retain_grad()
    z = m[2](h)
    return F.mse_loss(z, y), z


def hooked(m: nn.Sequential, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    h = m[1](m[0](x))
    h.register_hook(lambda g: g * 1.0)
    z = m[2](h)
    return F.mse_loss(z, y), z


@pytest.mark.parametrize("loss", [adaptive_weights, adapted, penalised, retained, hooked])
@pytest.mark.parametrize("curvature_opt", ["ggn", "hessian"])
def test_closures_that_need_a_graph_at_trial_points(loss: Any, curvature_opt: str) -> None:
    model, (x, y) = network(), data()
    opt = HessianFree(model.parameters(), damping=0.1, curvature_opt=curvature_opt)
    before = float(loss(model, x, y)[0].detach())
    for _ in range(3):
        value = opt.step(lambda: loss(model, x, y))
        assert opt.last_step.outcome is Outcome.ACCEPTED
        assert value == pytest.approx(float(loss(model, x, y)[0].detach()), rel=1e-6)  # it is the model's loss
    assert value < before


def singular(p: nn.Parameter) -> Tensor:
    """The likelihood of a Gaussian process; the matrix is singular for some parameters."""
    x = torch.linspace(0, 1, 12, dtype=torch.float64)
    K = p[0] * torch.exp(-0.5 * ((x[:, None] - x) / 0.3) ** 2) + p[1] * torch.eye(12, dtype=torch.float64)
    L = torch.linalg.cholesky(K)
    y = torch.sin(6 * x)
    return 0.5 * y @ torch.cholesky_solve(y[:, None], L)[:, 0] + L.diagonal().log().sum()


def outside_of_a_distribution(p: nn.Parameter) -> Tensor:
    y = torch.linspace(-1, 1, 12, dtype=torch.float64)
    return -torch.distributions.Normal(p[0], p[1], validate_args=True).log_prob(y).mean()


def no_inverse(p: nn.Parameter) -> Tensor:
    A = torch.eye(2, dtype=torch.float64) * torch.where(p[1] > 0.0, p[1], 0.0 * p[1])
    return (torch.linalg.inv(A) @ p).square().sum() + p.square().sum()


@pytest.mark.parametrize("loss", [singular, outside_of_a_distribution, no_inverse])
def test_a_trial_point_where_there_is_no_loss_is_a_failed_trial(loss: Callable[[nn.Parameter], Tensor]) -> None:
    p = nn.Parameter(torch.tensor([1.0, 0.5], dtype=torch.float64))
    opt = HessianFree([p], damping=1.0, curvature_opt="hessian", use_linesearch=True)
    start = loss(p).item()

    failures: list[bool] = []

    def evaluate() -> Tensor:
        failures.append(float(p.detach()[1]) <= 0.0)
        return loss(p)

    opt.step(lambda: loss(p), grad=torch.tensor([0.0, 40.0], dtype=torch.float64), mvp=lambda v: v, evaluate=evaluate)
    assert any(failures)  # the first trial points are beyond
    assert opt.last_step.next_damping > opt.last_step.damping
    assert loss(p).item() <= start


def test_other_errors_at_trial_points_are_errors() -> None:
    model, (x, y) = network(), data()
    calls: list[int] = []

    def evaluate() -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("the user's own")
        return F.mse_loss(model(x), y)

    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="the user's own"):
        HessianFree(model.parameters()).step(closure(model, x, y), evaluate=evaluate)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


def test_an_evaluation_that_does_not_move_says_so() -> None:
    model, (x, y) = network(), data()
    other = copy.deepcopy(model)
    cached = model(x).detach()
    for evaluate in (lambda: F.mse_loss(other(x), y), lambda: F.mse_loss(cached, y)):
        opt = HessianFree(model.parameters(), damping=0.1)
        opt.step(closure(model, x, y), evaluate=evaluate)
        assert opt.last_step.outcome is Outcome.EVALUATION_UNMOVED
        assert "does not depend on the parameters" in str(opt.last_step)
    opt = HessianFree(model.parameters(), damping=0.1)
    opt.step(closure(model, x, y), evaluate=lambda: F.mse_loss(model(x), y))
    assert opt.last_step.outcome is Outcome.ACCEPTED


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_traced_model_sees_trial_points() -> None:
    model, (x, y) = network(), data()
    traced, opt = torch.jit.trace(model, x), HessianFree(model.parameters(), damping=0.1)
    value = opt.step(closure(model, x, y), evaluate=lambda: F.mse_loss(traced(x), y))
    assert opt.last_step.outcome is Outcome.ACCEPTED
    assert value == pytest.approx(F.mse_loss(model(x), y).item(), rel=1e-6)


# ---------------------------------------------------------------------- what a closure leaves


class Notes(nn.Module):
    """Writes down what it sees, in every way that modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.last, self.history = 0, None, torch.zeros(3)
        self.teacher = nn.Linear(4, 1).requires_grad_(False)
        self.mean = torch.zeros(())  # a plain tensor
        self.log: list[Tensor] = []

    def loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:  # not forward: no hook of PyTorch's sees the call
        z = self(x)
        self.seen += 1
        self.mean.mul_(0.9).add_(z.detach().mean())
        total = torch.zeros(())
        total += z.detach().abs().sum()  # its own: stays what it is
        self.log.append(total)
        return F.mse_loss(z, y) + 0.01 * F.mse_loss(z, self.teacher(x)), z

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        z = self.layer(x)
        self.last = z.detach()
        self.history[self.calls % 3] = z.detach().mean()
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.layer.parameters(), strict=True):
                slow.data.mul_(0.9).add_(fast.data, alpha=0.1)
        return z


def test_what_a_closure_writes_moves_once_per_step() -> None:
    model, (x, y) = Notes(), data()
    opt = HessianFree(model.parameters(), damping=0.1)
    for _ in range(3):
        twin = copy.deepcopy(model)
        twin.loss(x, y)
        opt.step(lambda: model.loss(x, y))
        assert opt.last_step.outcome is Outcome.ACCEPTED
        assert opt.last_step.counts.losses > 1
        assert model.calls == twin.calls
        for name in ("seen", "mean", "history", "last"):
            assert torch.equal(getattr(model, name), getattr(twin, name)), name
        for p, q in zip(model.teacher.parameters(), twin.teacher.parameters(), strict=True):
            assert torch.equal(p, q)
    assert {type(t) for t in (*model.log, model.seen, model.last, model.mean)} == {Tensor}
    assert all(float(total) > 0.0 for total in model.log)


def test_values_in_written_tensors_are_those_that_the_gradient_needs() -> None:
    """The closure uses a running statistic after it has moved it; that is put back before the gradient is taken."""
    model, (x, y) = nn.Linear(4, 1).double(), tuple(t.double() for t in data())
    scale = torch.ones((), dtype=torch.float64)

    def forward() -> tuple[Tensor, Tensor]:
        scale.mul_(0.5).add_(3.0)
        z = model(x) * scale
        return F.mse_loss(z, y), z

    for curvature_opt in ("ggn", "hessian"):
        twin = copy.deepcopy(model)
        expected = 0.5 * scale.clone() + 3.0
        F.mse_loss(twin(x) * expected, y).backward()
        opt = HessianFree(model.parameters(), damping=0.1, curvature_opt=curvature_opt)
        opt.step(forward)
        norm = torch.cat([p.grad.reshape(-1) for p in twin.parameters()]).norm()
        assert opt.last_step.grad_norm == pytest.approx(norm.item(), rel=1e-12)
        assert torch.equal(scale, expected)


class ActNorm(nn.Module):
    """Initialises itself from the first data that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
        self.register_buffer("initialised", torch.tensor(0))
        self.out = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.initialised.item() == 0:
            with torch.no_grad():
                self.shift.copy_(-x.mean(0))
                self.scale.copy_(-torch.log(x.std(0)))
                self.initialised.fill_(1)
        return self.out((x + self.shift) * torch.exp(self.scale))


class Flagged(ActNorm):
    """The same with a plain flag, and by `.data`."""

    def __init__(self) -> None:
        super().__init__()
        self.done = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.done:
            self.shift.data = -x.mean(0)
            self.done = True
        return self.out(x + self.shift)


class Renormed(nn.Module):
    """Shortens the embeddings that it looks up."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(N, 4, max_norm=1.0), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embedding(torch.arange(N)))


@pytest.mark.parametrize("build", [ActNorm, Flagged, Renormed])
@pytest.mark.parametrize("way", ["step", "acc_step"])
def test_a_forward_pass_that_writes_to_parameters(build: type[nn.Module], way: str) -> None:
    model, (x, y) = build(), data()
    x = 3.0 * x + 2.0
    opt = HessianFree(model.parameters(), damping=0.1)
    for _ in range(3):
        value = opt.step(closure(model, x, y)) if way == "step" else opt.acc_step(model, F.mse_loss, [(x, y)])
        assert not opt.last_step.outcome.undone
        assert value == pytest.approx(F.mse_loss(model(x), y).item(), rel=1e-5)


def test_a_forward_pass_that_moves_the_parameters_each_time_is_refused() -> None:
    model, (x, y) = network(), data()

    def forward() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            model[0].weight.mul_(0.99)
        z = model(x)
        return F.mse_loss(z, y), z

    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="writes to the parameters each time"):
        HessianFree(model.parameters()).step(forward)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


class Drops(nn.Module):
    """Leaves out layers at random, by one of the many streams of random numbers."""

    def __init__(self, draw: Callable[[Drops], float]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))
        self.draw = draw
        self.seen: list[tuple[bool, ...]] = []
        self.python, self.numpy = random.Random(0), np.random.default_rng(0)
        self.torch = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.draw(self) > 0.4 for _ in self.layers]
        self.seen.append(tuple(kept))
        for layer, keep in zip(self.layers, kept, strict=True):
            x = x + torch.tanh(layer(x)) if keep else x
        return x


STREAMS: dict[str, Callable[[Drops], float]] = {
    "random": lambda _: random.random(),
    "NumPy": lambda _: float(np.random.rand()),
    "NumPy, normal": lambda _: float(np.random.randn()),
    "torch": lambda _: torch.rand(()).item(),
    "its own Random": lambda m: m.python.random(),
    "its own NumPy generator": lambda m: float(m.numpy.random()),
    "its own torch generator": lambda m: torch.rand((), generator=m.torch).item(),
}


@pytest.mark.parametrize("name", STREAMS)
def test_one_network_per_step_whatever_it_is_drawn_by(name: str) -> None:
    model, x = Drops(STREAMS[name]), torch.randn(N, 4)
    random.seed(3)
    np.random.seed(3)
    opt = HessianFree(model.parameters(), damping=0.1)
    drawn = []
    for _ in range(4):
        model.seen.clear()
        opt.step(closure(model, x, torch.sin(x)))
        assert len(model.seen) > 2
        assert len(set(model.seen)) == 1
        drawn.append(model.seen[0])
    assert len(set(drawn)) > 1  # another one in the next step


def test_a_closure_that_draws_its_data_is_named_without_being_asked() -> None:
    model, stream = network(), iter(np.random.default_rng(0).standard_normal((100, N, 5)).astype(np.float32))

    def forward() -> tuple[Tensor, Tensor]:
        batch = torch.from_numpy(next(stream))
        z = model(batch[:, :4])
        return F.mse_loss(z, batch[:, 4:]), z

    with pytest.warns(CurvatureWarning, match="another loss when it was called again"):
        HessianFree(model.parameters()).step(forward)


# ---------------------------------------------------------------------- gradients and hooks


def test_hooks_on_parameters_keep_rows_where_they_are() -> None:
    embedding, out, y = nn.Embedding(10, 3), nn.Linear(3, 1), torch.randn(10, 1)
    embedding.weight.register_hook(lambda g: g * (torch.arange(10) >= 8)[:, None])
    old = embedding.weight.detach().clone()
    opt = HessianFree([*embedding.parameters(), *out.parameters()], damping=0.1)
    for _ in range(3):
        opt.step(closure(lambda i: out(embedding(i)), torch.arange(10), y))
        assert opt.last_step.outcome is Outcome.ACCEPTED
    assert torch.equal(embedding.weight[:8], old[:8])
    assert not torch.equal(embedding.weight[8:], old[8:])


def test_a_hook_after_accumulation_is_refused() -> None:
    model, (x, y) = network(), data()
    handle = model[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    opt = HessianFree(model.parameters())
    with pytest.raises(RuntimeError, match="register_post_accumulate_grad_hook"):
        opt.step(closure(model, x, y))
    handle.remove()
    opt.step(closure(model, x, y))


def assigns(m: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    loss = F.mse_loss(m(x), y)
    for p, g in zip(m.parameters(), torch.autograd.grad(loss, list(m.parameters())), strict=True):
        p.grad = g
    return loss


def edits(m: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    loss = F.mse_loss(m(x), y)
    loss.backward()
    m[0].weight.grad[:, :2] = 0
    return loss


def scales(m: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    loss = F.mse_loss(m(x), y)
    loss.backward()
    for p in m.parameters():
        p.grad.mul_(0.5)
    return loss


def clips(m: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    loss = F.mse_loss(m(x), y)
    loss.backward()
    nn.utils.clip_grad_norm_(m.parameters(), 1.0)
    return loss


def clips_where_there_is_any(m: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    loss = F.mse_loss(m(x), y)
    loss.backward()
    for p in m.parameters():
        if p.grad is not None:
            p.grad.clamp_(-1.0, 1.0)
    return loss


@pytest.mark.parametrize("loss", [assigns, edits, scales, clips, clips_where_there_is_any])
def test_closures_that_work_on_gradients_are_told_the_truth(loss: Any) -> None:
    model, (x, y) = network(), data()
    with pytest.raises(RuntimeError, match=r"\.grad of a parameter.*opt\.step\(closure, grad=\.\.\.\)"):
        HessianFree(model.parameters(), curvature_opt="hessian").step(lambda: loss(model, x, y))


@pytest.mark.parametrize("habit", ["bare", "zero_grad", "record_function", "zero_grad of the model", "backward"])
def test_ordinary_closures_are_traced_once(habit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = network(), data()
    opt = HessianFree(model.parameters(), damping=0.1)
    traced = count_traces(monkeypatch)

    def forward() -> tuple[Tensor, Tensor]:
        if habit == "zero_grad":
            opt.zero_grad()
        if habit == "zero_grad of the model":
            model.zero_grad(set_to_none=False)
        with torch.profiler.record_function("loss") if habit == "record_function" else torch.enable_grad():
            z = model(x)
            loss = F.mse_loss(z, y)
        if habit == "backward":
            loss.backward()
        return loss, z

    for _ in range(8):
        opt.step(forward)
    assert len(traced) == 1


def count_traces(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    module, traced = sys.modules["latephase.curvature.ggn"], []
    trace = module.trace
    monkeypatch.setattr(module, "trace", lambda *args: traced.append(args) or trace(*args))
    return traced


CHANGING: dict[str, Callable[[int, Tensor], Tensor]] = {
    "annealed": lambda k, z: (k + 1) / 10 * z.pow(2).mean(),
    "tokens": lambda k, z: z.pow(2).sum() / (100 + k),
    "item": lambda k, z: z.pow(2).mean() / z.detach().abs().max().item(),
    "tensor": lambda k, z: torch.tensor(k / 10) * z.pow(2).mean(),
    "NumPy": lambda k, z: (torch.as_tensor(np.full((N, 1), k, dtype=np.float32)) * z.pow(2)).mean(),
    "NaN": lambda k, z: torch.where(torch.full_like(z, float("nan")).isnan(), z, float("nan")).pow(2).mean(),
    "generator": lambda k, z: (z * torch.rand(N, 1, generator=torch.Generator().manual_seed(k))).pow(2).mean(),
    "minus": lambda k, z: (0.5 + k - z).pow(2).mean() * 0.1,
}


@pytest.mark.parametrize("name", CHANGING)
def test_numbers_that_change_are_inputs_of_one_program(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = network().double(), tuple(t.double() for t in data())
    traced, v = count_traces(monkeypatch), torch.randn(49, dtype=torch.float64)
    for k in range(1, 6):

        def forward(k: int = k) -> tuple[Tensor, Tensor]:
            z = model(x)
            return F.mse_loss(z, y) + CHANGING[name](k, z), z

        product = ggn(forward, model.parameters()) @ v
        remembered = dict(ladder._choices)
        forget_choices()
        fresh = ggn(forward, model.parameters()) @ v
        ladder._choices.update(remembered)
        torch.testing.assert_close(product, fresh, rtol=1e-12, atol=1e-14)
    assert len(traced) == 1 + 5  # five of them are the fresh ones


# ---------------------------------------------------------------------- circumstances


def tied(a: nn.Linear, b: nn.Linear) -> None:
    b.weight.data = a.weight.data


def transposed(a: nn.Linear, b: nn.Linear) -> None:
    b.weight = nn.Parameter(a.weight.detach().t())


def expanded(a: nn.Linear, b: nn.Linear) -> None:
    b.weight = nn.Parameter(torch.ones(1).expand(4, 4))


@pytest.mark.parametrize("share", [tied, transposed, expanded])
def test_parameters_that_share_memory_are_refused(share: Callable[[nn.Linear, nn.Linear], None]) -> None:
    a, b, (x, y) = nn.Linear(4, 4), nn.Linear(4, 4), data()
    share(a, b)
    opt = HessianFree([*a.parameters(), *b.parameters()])
    with pytest.raises(ValueError, match=r"share memory.*b\.weight = a\.weight"):
        opt.step(closure(lambda x: b(torch.tanh(a(x))).sum(1, keepdim=True), x, y))


def test_parameters_side_by_side_in_one_buffer_are_welcome() -> None:
    buffer, (x, y) = torch.randn(8), data()
    w, u = nn.Parameter(buffer[:4]), nn.Parameter(buffer[4:])
    opt = HessianFree([w, u], damping=0.1)
    opt.step(closure(lambda x: (torch.tanh(x * w) @ u)[:, None], x, y))
    assert opt.last_step.outcome is Outcome.ACCEPTED
    assert torch.equal(buffer, torch.cat([w, u]).detach())


class Twice(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


def test_a_step_within_cached_parametrizations_is_refused() -> None:
    model, (x, y) = network(), data()
    parametrize.register_parametrization(model[0], "weight", Twice())
    opt = HessianFree(model.parameters(), damping=0.1)
    with parametrize.cached(), pytest.raises(RuntimeError, match=r"parametrize\.cached\(\)"):
        opt.step(closure(model, x, y))

    def cached(x: Tensor) -> Tensor:
        with parametrize.cached():
            return model(x)

    value = opt.step(closure(cached, x, y))
    assert value == pytest.approx(F.mse_loss(model(x), y).item(), rel=1e-6)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = network(), data()
    opt = HessianFree(model.parameters())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="runs 2 processes"):
        opt.step(closure(model, x, y))
    with pytest.raises(RuntimeError, match="runs 2 processes"):
        opt.acc_step(model, F.mse_loss, [(x, y)])
    opt.step(closure(model, x, y), grad=torch.ones(49), mvp=lambda v: v)  # averaged by the user
    assert opt.last_step is not None


def test_a_step_without_a_closure_after_backward_is_an_error() -> None:
    model, (x, y) = network(), data()
    opt = HessianFree(model.parameters())
    F.mse_loss(model(x), y).backward()
    with pytest.raises(TypeError, match="step needs a closure"):
        opt.step()


# ---------------------------------------------------------------------- the process


def process_state() -> dict[str, Any]:
    """All that a step could leave changed in the process."""
    gc.collect()
    return {
        "include": str(torch._C._dispatch_tls_local_include_set()),
        "exclude": str(torch._C._dispatch_tls_local_exclude_set()),
        "grad mode": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autograd works": (torch.ones(1, requires_grad=True) * 2).requires_grad,
        "function modes": len(function_modes()),
        "dispatch modes": len(_get_current_dispatch_mode_stack()),
        "forward level": torch.autograd.forward_ad._current_level,
        "autocast": [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
        "mkldnn": torch._C._get_mkldnn_enabled(),
        "attention": (torch._C._get_flash_sdp_enabled(), torch._C._get_math_sdp_enabled()),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "python threads": threading.active_count(),
        "module hooks": len(nn.modules.module._global_forward_pre_hooks),
        "fake tensors": sum(issubclass(type(thing), FakeTensor) for thing in gc.get_objects()),
    }


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3.0 * x * x * grad


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_process_is_as_before_after_many_steps_of_all_sorts() -> None:
    """Successes, refusals, failures, interrupts, numbers that are not finite: two hundred steps."""
    x, y = data()
    frozen = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    frozen[1].requires_grad_(False)
    centres = nn.Parameter(torch.randn(1, 4))
    models: dict[str, Any] = {
        "plain": network(),
        "frozen norm": frozen,
        "attention": nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Linear(4, 1)),
        "custom": nn.Sequential(nn.Linear(4, 8), CubeLayer(), nn.Linear(8, 1)),
        "refused": lambda x: -torch.cdist(x, centres),
        "autocast": nn.Linear(4, 1),
        "fails": lambda x: fail(),
        "interrupted": lambda x: fail(KeyboardInterrupt),
        "infinite": lambda x: models["plain"](x) * torch.tensor(float("inf")),
    }
    parameters = [p for m in models.values() if isinstance(m, nn.Module) for p in m.parameters()] + [centres]

    def step(k: int) -> None:
        name = list(models)[k % len(models)]
        opt = HessianFree(parameters, damping=1.0, cg_max_iter=3, curvature_opt="hessian" if k % 4 == 3 else "ggn")

        def forward() -> tuple[Tensor, Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=name == "autocast"):
                z = models[name](x)
            return F.mse_loss(z.float(), y), z

        with contextlib.suppress(CurvatureError, RuntimeError, KeyboardInterrupt):
            opt.step(forward)

    for k in range(2 * len(models)):
        step(k)  # whatever is loaded once
    before = process_state()
    for k in range(200):
        step(k)
    after = process_state()
    assert after.pop("fake tensors") <= before.pop("fake tensors")  # others may have left some, which may go meanwhile
    assert after == before


class CubeLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Cube.apply(x)


def fail(error: type[BaseException] = RuntimeError) -> Tensor:
    raise error("on purpose")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, None])
def test_a_trace_leaves_the_thread_as_it_was(error: type[BaseException] | None) -> None:
    """Also where it ends in the middle of everything that a trace turns on."""
    before = process_state()
    del before["fake tensors"]  # the error that a test catches holds some for as long as it is held

    def trace(t: Tensor) -> Tensor:
        torch.autograd.forward_ad.enter_dual_level()
        torch._C._set_grad_enabled(False)
        if error is not None:
            raise error
        torch._C._set_grad_enabled(True)
        torch.autograd.forward_ad.exit_dual_level()
        return t

    expected = contextlib.nullcontext() if error is None else pytest.raises(error)
    with expected, unchanged_dispatch_state():
        make_fx(trace, tracing_mode="fake")(torch.ones(2))
    after = process_state()
    assert {name: after[name] for name in before} == before
