"""The optimizer's state: saved, restored and copied to the bit; options that are changed on the way are obeyed."""

from __future__ import annotations

import copy
import gc
import io
import math
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from latephase import HessianFree, Outcome
from tests.contract import Problem, batch, closure, differences, network, plain_network, values

Restore = Callable[[Problem, Path], Problem]


def fresh(**options: Any) -> Problem:
    """A problem whose network starts elsewhere: nothing of it may survive the loading."""
    return Problem(network(seed=99), weight_decay=0.01, **options)


# ---------------------------------------------------------------------- five steps, a restart, five steps


def by_state_dicts(problem: Problem, folder: Path) -> Problem:
    path = folder / "checkpoint.pt"
    torch.save({"model": problem.model.state_dict(), "opt": problem.opt.state_dict()}, path)
    checkpoint = torch.load(path, weights_only=True)
    restored = fresh()
    restored.model.load_state_dict(checkpoint["model"])
    restored.opt.load_state_dict(checkpoint["opt"])
    return restored


def by_deepcopy(problem: Problem, folder: Path) -> Problem:
    restored = fresh()
    restored.model, restored.opt = copy.deepcopy((problem.model, problem.opt))
    return restored


def by_pickle(problem: Problem, folder: Path) -> Problem:
    restored = fresh()
    restored.model, restored.opt = pickle.loads(pickle.dumps((problem.model, problem.opt)))
    return restored


def by_saving_the_objects(problem: Problem, folder: Path) -> Problem:
    restored, file = fresh(), io.BytesIO()
    torch.save((problem.model, problem.opt), file)
    file.seek(0)
    restored.model, restored.opt = torch.load(file, weights_only=False)
    return restored


def by_distributed_checkpoint(problem: Problem, folder: Path) -> Problem:
    with warnings.catch_warnings():  # about itself, and that there is one process only
        warnings.simplefilter("ignore")
        from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
        from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

        model_state, opt_state = get_state_dict(problem.model, problem.opt)
        state_dict_saver.save(
            {"model": model_state, "opt": opt_state}, checkpoint_id=folder / "distributed", no_dist=True
        )
        restored = fresh()
        model_state, opt_state = get_state_dict(restored.model, restored.opt)
        state: dict[str, Any] = {"model": model_state, "opt": opt_state}
        state_dict_loader.load(state, checkpoint_id=folder / "distributed", no_dist=True)
        set_state_dict(restored.model, restored.opt, model_state_dict=state["model"], optim_state_dict=state["opt"])
    return restored


def by_flat_distributed_checkpoint(problem: Problem, folder: Path) -> Problem:
    """As trainers do it that save optimizer states by the names of the parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            get_optimizer_state_dict,
            set_optimizer_state_dict,
        )

        options = StateDictOptions(flatten_optimizer_state_dict=True)
        restored = fresh()
        restored.model.load_state_dict(problem.model.state_dict())
        state = {"opt": get_optimizer_state_dict(problem.model, problem.opt, options=options)}
        state_dict_saver.save(state, checkpoint_id=folder / "flat", no_dist=True)
        state = {"opt": get_optimizer_state_dict(restored.model, restored.opt, options=options)}
        state_dict_loader.load(state, checkpoint_id=folder / "flat", no_dist=True)
        set_optimizer_state_dict(restored.model, restored.opt, state["opt"], options=options)
    return restored


@pytest.mark.parametrize("way", ["step", "acc_step"])
@pytest.mark.parametrize(
    "restore",
    [
        by_state_dicts,
        by_deepcopy,
        by_pickle,
        by_saving_the_objects,
        by_distributed_checkpoint,
        by_flat_distributed_checkpoint,
    ],
)
def test_ten_steps_are_five_and_a_restart_and_five(restore: Restore, way: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    through = Problem(weight_decay=0.01, damping=10.0)  # so large that some warm starts are of use
    losses = [getattr(through, way)() for _ in range(10)]

    torch.manual_seed(3)
    first = Problem(weight_decay=0.01, damping=10.0)
    for _ in range(5):
        getattr(first, way)()
    rng = torch.get_rng_state()
    second = restore(first, tmp_path)
    torch.set_rng_state(rng)
    assert second.opt.param_groups[0]["damping"] == first.opt.last_step.next_damping
    records = []
    for loss in losses[5:]:
        assert getattr(second, way)() == loss
        records.append(second.opt.last_step)
    assert any(record.outcome is Outcome.ACCEPTED for record in records)
    assert any(record.warm_started for record in records)
    without_gradients = [{**values(p.model, p.opt), "gradients": None} for p in (through, second)]
    assert differences(without_gradients[0], without_gradients[1]) == []


def test_a_copy_and_its_original_go_separate_ways() -> None:
    problem = Problem(plain_network())
    for _ in range(2):
        problem.step()
    before = problem.snapshot()
    twin = copy.deepcopy(problem)
    twin.step()
    assert differences(before, problem.snapshot()) == []
    problem.step()
    # Copies of parameters are without gradients.
    one, other = ({**values(p.model, p.opt), "gradients": None} for p in (problem, twin))
    assert differences(one, other) == []


CONFIGURATION: dict[str, Any] = {
    "curvature_opt": "hessian",
    "cg_max_iter": 7,
    "cg_decay_x0": 0.5,
    "martens_conv_crit": False,
    "nonpos_curv_option": "saddle-free",
    "damping_bounds": (1e-3, 1e3),
    "adapt_damping": False,
    "use_cg_backtracking": False,
    "use_linesearch": False,
    "verbose": True,
    "product_dtype": torch.bfloat16,
    "compile": True,
}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_and_pickles_keep_the_configuration(duplicate: Callable[[HessianFree], HessianFree]) -> None:
    opt = HessianFree(plain_network().parameters(), lr=0.5, damping=0.1, weight_decay=0.2, **CONFIGURATION)
    twin = duplicate(opt)
    defaults = HessianFree(plain_network().parameters())
    own = {"kind", "solver", "damping_bounds", "damping_rule", "backtracking", "line_search", "verbose"}
    assert own <= vars(opt).keys()
    for name in own:
        assert vars(twin)[name] == vars(opt)[name] != vars(defaults)[name], name
    assert opt.defaults.items() <= twin.defaults.items()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_a_scheduled_optimizer_steps_itself(duplicate: Callable[[Any], Any]) -> None:
    """A scheduler hangs a `step` on its optimizer that is bound to that one object."""
    problem = Problem(plain_network())
    scheduler = torch.optim.lr_scheduler.LambdaLR(problem.opt, lambda epoch: 0.5**epoch)
    problem.step()
    scheduler.step()
    before = problem.snapshot()
    model, opt = duplicate((problem.model, problem.opt))
    start = copy.deepcopy(model.state_dict())
    opt.step(closure(model, problem.gradient[0]))
    assert opt.last_step.outcome is Outcome.ACCEPTED
    assert len(differences(start, model.state_dict())) == 4
    assert differences(before, problem.snapshot()) == []


# ---------------------------------------------------------------------- what the state is


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def test_the_state_dict_holds_tensors_and_python_scalars_only() -> None:
    # NumPy's numbers are what a hyper-parameter search hands over; checkpoints cannot hold them safely.
    problem = Problem(lr=np.float64(1.0), damping=np.float32(0.5), weight_decay=torch.tensor(0.25))
    problem.opt.add_param_group({"params": [nn.Parameter(torch.ones(1).double())], "damping": np.float64(2.0)})
    for way in ("step", "acc_step"):
        getattr(problem, way)()
    assert {type(leaf) for leaf in leaves(problem.opt.state_dict())} <= {Tensor, float, int, bool, str, type(None)}
    assert all(type(value) is float for name, value in vars(problem.opt.last_step).items() if "damping" in name)
    file = io.BytesIO()
    torch.save(problem.opt.state_dict(), file)
    file.seek(0)
    assert differences(problem.opt.state_dict(), torch.load(file, weights_only=True)) == []


def test_the_state_is_keyed_by_parameter() -> None:
    problem = Problem()
    fresh_state = problem.opt.state_dict()["state"]
    problem.step()
    assert set(problem.opt.state) == set(problem.model.parameters())
    for p in problem.model.parameters():
        assert {value.shape for value in problem.opt.state[p].values()} == {p.shape}
        assert {value.dtype for value in problem.opt.state[p].values()} == {p.dtype}
        assert not any(value.requires_grad for value in problem.opt.state[p].values())
    # A fresh optimizer has all the state it will ever have: tools that load in place find its tensors.
    stepped_state = problem.opt.state_dict()["state"]
    assert {i: sorted(state) for i, state in fresh_state.items()} == {
        i: sorted(state) for i, state in stepped_state.items()
    }


def test_the_warm_start_is_restored() -> None:
    problem = Problem(plain_network())
    for _ in range(3):
        problem.step()
    restored = Problem(plain_network())
    restored.model.load_state_dict(problem.model.state_dict())
    restored.opt.load_state_dict(problem.opt.state_dict())
    without = Problem(plain_network(), damping=problem.opt.param_groups[0]["damping"])
    without.model.load_state_dict(problem.model.state_dict())
    for p in (problem, restored, without):
        p.step()
    assert [p.opt.last_step.warm_started for p in (problem, restored, without)] == [True, True, False]
    assert differences(values(problem.model, problem.opt), values(restored.model, restored.opt)) == []


def test_a_step_without_a_closure_does_nothing_on_a_fresh_optimizer() -> None:
    problem = Problem()
    with pytest.raises(TypeError, match="step needs a closure"):  # as of a trainer that has called backward() before
        problem.opt.step()
    for p in problem.model.parameters():
        p.grad = torch.zeros_like(p)
    assert problem.opt.step(None) is None
    for p in problem.model.parameters():
        p.grad = None
    before = problem.snapshot()
    assert problem.opt.step(None) is None
    assert problem.opt.step(closure=None) is None
    assert problem.opt.step() is None
    assert differences(before, problem.snapshot()) == []
    assert problem.opt.last_step is None
    problem.step()
    with pytest.raises(TypeError, match="step needs a closure"):
        problem.opt.step(None)


# ---------------------------------------------------------------------- options that change


@pytest.mark.parametrize("way", ["step", "acc_step"])
def test_a_changed_lr_is_obeyed(way: str) -> None:
    moves = []
    for lr in (1.0, 0.5):
        torch.manual_seed(0)
        problem = Problem(use_linesearch=False)
        before = [p.detach().clone() for p in problem.model.parameters()]
        problem.opt.param_groups[0]["lr"] = lr
        getattr(problem, way)()
        assert problem.opt.last_step.step_size == lr
        moves.append([p.detach() - q for p, q in zip(problem.model.parameters(), before, strict=True)])
    for whole, half in zip(*moves, strict=True):
        torch.testing.assert_close(0.5 * whole, half, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("option", "value"), [("damping", 50.0), ("weight_decay", 3.0), ("lr", 0.125)])
def test_a_changed_option_is_as_if_it_had_been_given(option: str, value: float) -> None:
    changed, given = Problem(plain_network()), Problem(plain_network(), **{option: value})
    changed.opt.param_groups[0][option] = value
    returned = changed.step()
    assert returned == given.step()
    assert differences(values(changed.model, changed.opt), values(given.model, given.opt)) == []
    default = Problem(plain_network())
    assert default.step() != returned


def test_loaded_options_are_obeyed() -> None:
    """Loading replaces the groups by new dictionaries: whoever keeps the old ones works with old numbers."""
    source = Problem(plain_network(), lr=0.5, damping=7.0, weight_decay=0.3, use_linesearch=False)
    target = Problem(plain_network(), use_linesearch=False)
    target.opt.load_state_dict(source.opt.state_dict())
    source.step()
    target.step()
    assert target.opt.last_step.damping == 7.0
    assert target.opt.last_step.step_size == 0.5
    assert differences(values(source.model, source.opt), values(target.model, target.opt)) == []


def test_replaced_groups_are_obeyed() -> None:
    """As tools do that wrap optimizers."""
    problem = Problem(plain_network(), use_linesearch=False)
    problem.opt.param_groups = [{**group, "lr": 0.25} for group in problem.opt.param_groups]
    problem.step()
    assert problem.opt.last_step.step_size == 0.25
    assert problem.opt.param_groups[0]["damping"] == problem.opt.last_step.next_damping


@pytest.mark.parametrize("way", ["step", "acc_step"])
def test_learning_rate_schedulers(way: str) -> None:
    problem = Problem(plain_network(), use_linesearch=False, lr=0.8)
    scheduler = torch.optim.lr_scheduler.LambdaLR(problem.opt, lambda epoch: 0.5**epoch)
    sizes = []
    for _ in range(3):
        getattr(problem, way)()
        scheduler.step()  # warns if it believes that the optimizer has not stepped
        sizes.append(problem.opt.last_step.step_size)
    assert sizes == pytest.approx([0.8, 0.4, 0.2])


@pytest.mark.parametrize("way", ["step", "acc_step"])
def test_step_hooks_are_called(way: str) -> None:
    problem, calls = Problem(plain_network()), []
    problem.opt.register_step_pre_hook(lambda opt, args, kwargs: calls.append("before"))
    problem.opt.register_step_post_hook(lambda opt, args, kwargs: calls.append("after"))
    getattr(problem, way)()
    assert calls == ["before", "after"]


# ---------------------------------------------------------------------- groups


def grouped(**options: Any) -> Problem:
    """Two groups, one per layer; the options are the second layer's own."""
    problem = Problem(plain_network(), use_linesearch=False)
    model = problem.model
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), **options}]
    problem.opt = HessianFree(groups, use_linesearch=False, cg_max_iter=50)
    return problem


def test_two_groups_with_equal_options_are_one() -> None:
    one, two = Problem(plain_network(), use_linesearch=False, cg_max_iter=50), grouped()
    for _ in range(2):
        one.step()
        two.step()
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0.0)


def test_a_group_with_its_own_lr() -> None:
    whole, half = grouped(), grouped(lr=0.5)
    start = [p.detach().clone() for p in whole.model.parameters()]
    whole.step()
    half.step()
    assert half.opt.last_step.step_size == 1.0  # of the first group
    for number, share in enumerate([1.0, 1.0, 0.5, 0.5]):
        p, q = list(whole.model.parameters())[number], list(half.model.parameters())[number]
        torch.testing.assert_close(share * (p - start[number]), q - start[number], rtol=1e-9, atol=1e-12)


def test_a_group_with_its_own_damping() -> None:
    free, held = grouped(), grouped(damping=1e5)
    start = [p.detach().clone() for p in free.model.parameters()]
    free.step()
    held.step()
    moved = [
        [float((p.detach() - q).norm()) for p, q in zip(problem.model.parameters(), start, strict=True)]
        for problem in (free, held)
    ]
    assert all(a > 1e-2 for a in moved[0])
    assert all(a > 1e-2 for a in moved[1][:2])
    assert all(a < 1e-3 for a in moved[1][2:])
    first, second = (group["damping"] for group in held.opt.param_groups)
    assert second == pytest.approx(1e5 * first)  # the rule scales both


def test_a_group_with_its_own_weight_decay() -> None:
    problem = grouped(weight_decay=0.5)
    penalty = 0.25 * sum(float((p.detach() ** 2).sum()) for p in problem.model[2].parameters())
    loss = float(problem.evaluate()[0].detach())
    problem.step()
    assert problem.opt.last_step.loss_before == pytest.approx(loss + penalty, rel=1e-12)


def test_add_param_group() -> None:
    together, added = grouped(weight_decay=0.5), grouped()
    added.opt = HessianFree(added.model[0].parameters(), use_linesearch=False, cg_max_iter=50)
    added.opt.add_param_group({"params": list(added.model[2].parameters()), "weight_decay": 0.5})
    assert differences(together.opt.state_dict(), added.opt.state_dict()) == []
    for _ in range(2):
        assert together.step() == added.step()
    assert differences(values(together.model, together.opt), values(added.model, added.opt)) == []


def test_add_param_group_between_steps() -> None:
    problem = Problem(plain_network())
    problem.opt = HessianFree(problem.model[2].parameters())
    frozen = problem.model[0].weight.detach().clone()
    for _ in range(2):
        problem.step()
    assert torch.equal(frozen, problem.model[0].get_parameter("weight"))
    problem.opt.add_param_group({"params": problem.model[0].parameters()})
    problem.step()
    assert problem.opt.last_step.outcome is Outcome.ACCEPTED
    assert not torch.equal(frozen, problem.model[0].get_parameter("weight"))


# ---------------------------------------------------------------------- weights with a shape of their own


class Autoencoder(nn.Module):
    """Encoder and decoder share one matrix, by way of two modules that hold the same parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(4, 3).double()
        self.decoder = nn.Linear(3, 4, bias=False).double()
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(tokens)))


def test_tied_weights() -> None:
    torch.manual_seed(0)
    model = Autoencoder()
    opt = HessianFree(model.parameters(), use_linesearch=False, cg_max_iter=100)
    assert len(list(model.parameters())) == 1
    tokens = torch.arange(4).repeat(5)

    def forward() -> tuple[Tensor, Tensor]:
        outputs = model(tokens)
        return cross_entropy(outputs, tokens.roll(1)), outputs

    for step in range(4):
        weight = model.encoder.weight.detach().clone()
        damping = opt.param_groups[0]["damping"]
        opt.step(forward)
        assert model.encoder.weight is model.decoder.weight
        if step == 0:  # the step of the damped Gauss-Newton method for the one shared matrix
            expected = tied_step(weight, tokens, damping)
            torch.testing.assert_close(model.encoder.weight.detach() - weight, expected, rtol=1e-5, atol=1e-7)
    assert model.decoder.weight is model.encoder.weight


def tied_step(weight: Tensor, tokens: Tensor, damping: float) -> Tensor:
    def outputs(w: Tensor) -> Tensor:
        return torch.tanh(w.view(4, 3)[tokens]) @ w.view(4, 3).T

    def loss(z: Tensor) -> Tensor:
        return cross_entropy(z.view(-1, 4), tokens.roll(1))

    w = weight.reshape(-1)
    z = outputs(w)
    J = torch.func.jacrev(outputs)(w).reshape(-1, w.numel())
    H = torch.func.jacrev(torch.func.grad(loss))(z).reshape(z.numel(), z.numel())
    g = J.T @ torch.func.grad(loss)(z).reshape(-1)
    return torch.linalg.solve(J.T @ H @ J + damping * torch.eye(w.numel()).double(), -g).view_as(weight)


def test_channels_last_weights_are_saved_and_restored() -> None:
    def convolutions(seed: int) -> tuple[nn.Module, HessianFree]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 3), nn.Flatten()).double()
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model, HessianFree(model.parameters())

    inputs = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = inputs.to(memory_format=torch.channels_last), torch.ones(6, 8, dtype=torch.float64)
    model, opt = convolutions(seed=0)
    for _ in range(3):
        opt.step(closure(model, data))
    twin, twin_opt = convolutions(seed=1)
    twin.load_state_dict(model.state_dict())
    twin_opt.load_state_dict(opt.state_dict())
    for _ in range(3):
        assert opt.step(closure(model, data)) == twin_opt.step(closure(twin, data))
    assert opt.last_step.outcome is Outcome.ACCEPTED
    assert differences(values(model, opt)["parameters"], values(twin, twin_opt)["parameters"]) == []
    assert not model[0].weight.is_contiguous()


# ---------------------------------------------------------------------- memory


def tensors_alive() -> int:
    return sum(type(x) is Tensor or type(x) is nn.Parameter for x in gc.get_objects())


def resident_bytes() -> int | None:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None


@pytest.mark.parametrize("way", ["step", "acc_step"])
def test_memory_does_not_grow_over_200_steps(way: str) -> None:
    """Every step makes a graph of a third of a megabyte or more. The collector is off: none may wait in a cycle."""
    model = plain_network(3, 32, 2)
    opt = HessianFree(model.parameters(), cg_max_iter=2, use_cg_backtracking=False)
    data = batch(1500, seed=1)
    activations = 1500 * 32 * 8
    x, y = data
    lists = [(x[:750], y[:750]), (x[750:], y[750:])]
    forward = closure(model, data)

    def take_steps(number: int) -> None:
        for _ in range(number):
            opt.step(forward) if way == "step" else opt.acc_step(model, mse_loss, lists)

    take_steps(10)
    gc.collect()
    gc.disable()
    try:
        tensors, memory = tensors_alive(), resident_bytes()
        take_steps(200)
        assert tensors_alive() <= tensors
        if memory is not None:  # tensors that only C++ knows of
            assert resident_bytes() - memory < 20 * activations
    finally:
        gc.enable()
    assert math.isfinite(opt.last_step.loss_after)
