"""Two optimizers as one: what schedulers and checkpoints see, and what each phase does."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract import batch, differences, network, plain_network
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from latephase import HessianFree, Outcome, PhaseSwitch
from latephase.switching.state import ENTRY

SWITCH, STEPS = 4, 10


class Falling:
    """A detector of the plainest kind: time is when the loss has fallen `n` times."""

    def __init__(self, n: int = SWITCH) -> None:
        self.n, self.reason = n, ""
        self.losses: list[float] = []
        self.seen_optimizer: Any = None

    def update(self, loss: float, optimizer: torch.optim.Optimizer) -> bool:
        self.losses.append(loss)
        self.seen_optimizer = optimizer
        self.reason = f"{len(self.losses)} losses were seen"
        return len(self.losses) >= self.n

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = list(state["losses"])


def by_steps(steps: int, loss: float | None) -> bool:
    return steps >= SWITCH


FIRSTS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.02),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.02),
    "lbfgs": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=2),
}
WHENS: dict[str, Callable[[], Any]] = {"steps": lambda: SWITCH, "function": lambda: by_steps, "detector": Falling}


class Training:
    """A network, a switch over its parameters, and a batch of its own for each step."""

    def __init__(self, first: str = "adam", when: Any = SWITCH, model: nn.Module | None = None, **options: Any) -> None:
        self.model = network() if model is None else model
        self.hf = HessianFree(self.model.parameters(), cg_max_iter=6, damping=0.1)
        options = {"carry_over": False, **options}
        self.opt = PhaseSwitch(FIRSTS[first](self.model.parameters()), self.hf, when, **options)
        self.calls = 0

    def closure(self, step: int) -> Callable[[], tuple[Tensor, Tensor]]:
        inputs, targets = batch(16, seed=step)

        def closure() -> tuple[Tensor, Tensor]:
            self.calls += 1
            self.opt.zero_grad()
            outputs = self.model(inputs)
            loss = mse_loss(outputs, targets)
            loss.backward()
            return loss, outputs

        return closure

    def evaluate(self, step: int) -> Callable[[], Tensor]:
        inputs, targets = batch(16, seed=100 + step)
        return lambda: mse_loss(self.model(inputs), targets)

    def step(self, k: int, **options: Any) -> float:
        return self.opt.step(self.closure(k), **{"evaluate": self.evaluate(k), **options})

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def values(self) -> dict[str, Any]:
        return {
            "model": copy.deepcopy(self.model.state_dict()),
            "opt": copy.deepcopy(self.opt.state_dict()),
            "random numbers": torch.get_rng_state(),
        }


def quietly(training: Training, n: int = SWITCH) -> Training:
    """The same, after n steps."""
    for k in range(n):
        training.step(k)
    return training


# ---------------------------------------------------------------------- resumed to the bit

Restore = Callable[[Training, Training, Path], None]


def by_state_dicts(old: Training, new: Training, folder: Path) -> None:
    torch.save({"model": old.model.state_dict(), "opt": old.opt.state_dict()}, folder / "checkpoint.pt")
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    new.model.load_state_dict(checkpoint["model"])
    new.opt.load_state_dict(checkpoint["opt"])


def by_deepcopy(old: Training, new: Training, folder: Path) -> None:
    new.model, new.opt = copy.deepcopy((old.model, old.opt))


def by_pickle(old: Training, new: Training, folder: Path) -> None:
    new.model, new.opt = pickle.loads(pickle.dumps((old.model, old.opt)))


def by_distributed_checkpoint(old: Training, new: Training, folder: Path) -> None:
    with warnings.catch_warnings():  # about itself, and that there is one process only
        warnings.simplefilter("ignore")
        from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
        from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

        model, opt = get_state_dict(old.model, old.opt)
        state_dict_saver.save({"model": model, "opt": opt}, checkpoint_id=folder / "distributed", no_dist=True)
        model, opt = get_state_dict(new.model, new.opt)
        state: dict[str, Any] = {"model": model, "opt": opt}
        state_dict_loader.load(state, checkpoint_id=folder / "distributed", no_dist=True)
        set_state_dict(new.model, new.opt, model_state_dict=state["model"], optim_state_dict=state["opt"])


RESTORES = [by_state_dicts, by_deepcopy, by_pickle, by_distributed_checkpoint]


def resumed(restore: Restore, at: int, first: str, when: str, folder: Path) -> tuple[Training, Training]:
    torch.manual_seed(3)
    through = quietly(Training(first, WHENS[when]()), STEPS)
    after = through.values()
    torch.manual_seed(3)
    old, new = Training(first, WHENS[when]()), Training(first, WHENS[when](), model=network(seed=99))
    quietly(old, at)
    rng = torch.get_rng_state()
    restore(old, new, folder)
    torch.set_rng_state(rng)
    for k in range(at, STEPS):
        new.step(k)
    assert through.opt.phase == new.opt.phase == "second"
    assert differences(after, new.values()) == []
    return through, new


@pytest.mark.parametrize("restore", RESTORES)
@pytest.mark.parametrize("at", [2, SWITCH, 7], ids=["first phase", "at the switch", "second phase"])
@pytest.mark.parametrize("first", ["sgd", "momentum", "adam"])
def test_resumed_to_the_bit(restore: Restore, at: int, first: str, tmp_path: Path) -> None:
    resumed(restore, at, first, "steps", tmp_path)


@pytest.mark.parametrize("at", range(STEPS))
@pytest.mark.parametrize("when", WHENS)
def test_resumed_at_every_step(at: int, when: str, tmp_path: Path) -> None:
    resumed(by_state_dicts, at, "adam", when, tmp_path)


@pytest.mark.parametrize("at", [2, SWITCH, 7])
def test_resumed_with_lbfgs_first(at: int, tmp_path: Path) -> None:
    """Whose state is one entry for all parameters, with lists in it."""
    resumed(by_state_dicts, at, "lbfgs", "steps", tmp_path)


def test_resumed_after_a_hand_back(tmp_path: Path) -> None:
    old, new = quietly(Training(), 6), Training(model=network(seed=99))
    old.opt.hand_back("enough")
    by_state_dicts(old, new, tmp_path)
    assert (new.opt.phase, new.opt.reason, new.opt.steps) == ("first", "enough", 6)
    rng = torch.get_rng_state()
    for training in (old, new):
        torch.set_rng_state(rng)
        for k in range(3):
            training.step(k)
    assert new.opt.phase == "first"  # and is not switched again
    assert differences(old.values(), new.values()) == []


def test_groups_and_orders_may_differ(tmp_path: Path) -> None:
    """The second's state follows the parameters, not their numbers."""

    def build(seed: int) -> tuple[nn.Sequential, PhaseSwitch]:
        model = plain_network(seed=seed)
        groups: list[dict[str, Any]] = [{"params": model[2].parameters(), "lr": 0.1}, {"params": model[0].parameters()}]
        return model, PhaseSwitch(torch.optim.Adam(groups), HessianFree(model.parameters()), 1)

    (model, opt), (twin, twin_opt) = build(0), build(1)
    data = batch(16)

    def closure(net: nn.Module) -> Callable[[], tuple[Tensor, Tensor]]:
        def forward() -> tuple[Tensor, Tensor]:
            outputs = net(data[0])
            loss = mse_loss(outputs, data[1])
            loss.backward()
            return loss, outputs

        return forward

    for _ in range(3):
        opt.step(closure(model))
    twin.load_state_dict(model.state_dict())
    twin_opt.load_state_dict(opt.state_dict())
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(opt.second.state[p]["cg_solution"], twin_opt.second.state[q]["cg_solution"])
        assert torch.equal(opt.state[p]["second.cg_solution"], opt.second.state[p]["cg_solution"])
    assert opt.step(closure(model)) == twin_opt.step(closure(twin))


def test_a_state_of_something_else_is_refused_and_changes_nothing() -> None:
    of_detector = quietly(Training(when=Falling()), 2).opt.state_dict()
    training = quietly(Training(), 2)
    before = training.values()
    with pytest.raises(ValueError, match="no state of a PhaseSwitch"):
        training.opt.load_state_dict(training.opt.first.state_dict())
    state = training.opt.state_dict()
    state["param_groups"][0][ENTRY]["second"][0]["params"].append(9)
    with pytest.raises(ValueError, match="saved groups of second"):
        training.opt.load_state_dict(state)
    with pytest.raises(ValueError, match="that of a detector"):
        training.opt.load_state_dict(of_detector)
    assert differences(before, training.values()) == []


def test_hooks_of_state_dicts() -> None:
    opt, calls = Training().opt, []
    opt.register_state_dict_pre_hook(lambda o: calls.append("before saving"))
    opt.register_state_dict_post_hook(lambda o, state: {**state, "mine": 1})
    opt.register_load_state_dict_pre_hook(lambda o, state: calls.append("before loading"))
    opt.register_load_state_dict_post_hook(lambda o: calls.append("after loading"))
    state = opt.state_dict()
    assert state["mine"] == 1
    opt.load_state_dict(state)
    assert calls == ["before saving", "before loading", "after loading"]


def test_a_fresh_optimizer_is_made_to_create_its_state_without_a_step() -> None:
    """As checkpointing tools do it: zero gradients, lr = 0, step()."""
    training = Training(when=1)
    assert not training.opt.state
    for p in training.model.parameters():
        p.grad = torch.zeros_like(p)
    for group in training.opt.param_groups:
        group["lr"] = 0.0
    training.opt.step()
    assert (training.opt.steps, training.opt.phase) == (0, "first")
    p = next(training.model.parameters())
    assert {"exp_avg", "exp_avg_sq", "second.cg_solution"} <= training.opt.state[p].keys()
    p.grad[0] = 1.0
    training.opt.step()  # a warm-up that starts at zero is a step
    assert training.opt.steps == 1


# ---------------------------------------------------------------------- the two phases


@pytest.mark.parametrize("first", ["sgd", "momentum", "adam"])
def test_each_phase_is_its_optimizer(first: str) -> None:
    """As if the two had been called by hand, with batch norm and dropout."""
    torch.manual_seed(5)
    training = Training(first)
    losses = [training.step(k) for k in range(STEPS)]
    torch.manual_seed(5)
    other = Training(first)
    for k in range(SWITCH):
        loss, _ = other.closure(k)()
        other.opt.first.step()
        assert losses[k] == float(loss.detach())
    for k in range(SWITCH, STEPS):
        assert losses[k] == other.hf.step(other.closure(k), evaluate=other.evaluate(k))
    assert differences(training.model.state_dict(), other.model.state_dict()) == []
    assert any(float(p.grad.norm()) > 0.0 for p in training.model.parameters())  # the first phase's last


@pytest.mark.parametrize("when", WHENS)
def test_when(when: str) -> None:
    training = quietly(Training(when=WHENS[when]()), SWITCH - 1)
    assert training.opt.phase == "first"
    training.step(SWITCH)
    assert training.opt.phase == "second"
    reasons = {"steps": "4 steps were taken", "function": "the condition held after 4 steps"}
    assert training.opt.reason == reasons.get(when, "4 losses were seen")
    assert training.opt.steps == SWITCH


def test_what_when_sees() -> None:
    seen: list[Any] = []
    training = Training(when=lambda steps, loss: bool(seen.append((steps, loss))))
    losses = [training.step(k) for k in range(3)]
    assert seen == list(zip([1, 2, 3], losses, strict=True))
    training.opt.step()
    assert seen[-1] == (4, None)
    detector = Falling()
    training = quietly(Training(when=detector), 3)
    assert len(detector.losses) == 3
    assert detector.seen_optimizer is training.opt.first


def test_a_detector_without_losses_warns() -> None:
    training = quietly(Training(when=Falling()), 1)
    with pytest.warns(UserWarning, match="sees no loss"):
        training.opt.step()
    assert (training.opt.phase, training.opt.steps) == ("first", 2)


def test_options_are_passed_on() -> None:
    training = quietly(Training())
    weights = training.weights()
    training.step(0, evaluate=lambda: mse_loss(torch.ones(1), torch.zeros(1)))
    assert training.hf.last_step.outcome is Outcome.EVALUATION_UNMOVED
    assert differences(weights, training.weights()) == []
    calls: list[int] = []

    def preconditioner(v: Tensor) -> Tensor:
        calls.append(1)
        return v

    training.step(0, M_func=preconditioner)
    assert calls


def test_unknown_options_are_refused_in_the_first_phase_already() -> None:
    training = Training()
    with pytest.raises(TypeError, match=r"HessianFree.step, the second phase's, has no evaluation"):
        training.step(0, evaluation=1)
    model = plain_network()
    opt = PhaseSwitch(torch.optim.Adam(model.parameters()), torch.optim.SGD(model.parameters()), 1)
    with pytest.raises(TypeError, match="has no evaluate"):
        opt.step(lambda: None, evaluate=lambda: None)
    with pytest.raises(TypeError, match="has no acc_step"):
        opt.acc_step()
    assert opt.steps == 0


def test_acc_step() -> None:
    training = Training()
    lists: Any = [[batch(8, seed=1), batch(8, seed=2)], [batch(8, seed=3), batch(8, seed=4)]]
    with pytest.raises(RuntimeError, match="for the second phase"):
        training.opt.acc_step(training.model, mse_loss, *lists)
    quietly(training)
    twin, hf = copy.deepcopy((training.model, training.hf))
    rng, hooked = torch.get_rng_state(), []
    training.opt.register_step_post_hook(lambda *_: hooked.append(1))
    loss = training.opt.acc_step(training.model, mse_loss, *lists, micro_batches_in_memory=2)
    torch.set_rng_state(rng)
    assert loss == hf.acc_step(twin, mse_loss, *lists, micro_batches_in_memory=2)
    assert differences(training.model.state_dict(), twin.state_dict()) == []
    assert (training.opt.steps, hooked) == (SWITCH + 1, [1])


def test_a_second_of_first_order() -> None:
    model, data = plain_network(), batch(16)
    for second in (torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.LBFGS(model.parameters())):
        opt = PhaseSwitch(torch.optim.Adam(model.parameters()), second, 1)

        def closure(opt: PhaseSwitch = opt) -> Tensor:
            opt.zero_grad()
            loss = mse_loss(model(data[0]), data[1])
            loss.backward()
            return loss

        losses = [opt.step(closure) for _ in range(4)]
        assert losses == sorted(losses, reverse=True)
        assert all(type(loss) is float for loss in losses)
        if isinstance(second, torch.optim.SGD):
            assert opt.step() is None  # as for any optimizer
        else:
            with pytest.raises(RuntimeError, match="LBFGS gets a closure"):
                opt.step()


def test_the_loss_alone_is_enough_for_the_hessian() -> None:
    model, data = plain_network(), batch(16)
    hf = HessianFree(model.parameters(), curvature_opt="hessian", cg_max_iter=5)
    opt = PhaseSwitch(torch.optim.Adam(model.parameters()), hf, 1)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = mse_loss(model(data[0]), data[1])
        loss.backward()
        return loss

    for _ in range(3):
        opt.step(closure)
    assert hf.last_step.outcome is Outcome.ACCEPTED


def test_without_a_closure() -> None:
    training = Training()
    for k in range(SWITCH):
        training.closure(k)()
        assert training.opt.step() is None
    before = training.values()
    training.closure(0)()
    before["random numbers"], before["model"] = torch.get_rng_state(), copy.deepcopy(training.model.state_dict())
    with pytest.raises(RuntimeError, match=r"4 steps were taken.*opt.step\(closure\).*zero_grad.*hand_back"):
        training.opt.step()
    assert differences(before, training.values()) == []
    training.opt.hand_back()
    weights = training.weights()
    training.opt.step()
    assert (training.opt.phase, training.opt.steps) == ("first", SWITCH + 1)
    assert len(differences(weights, training.weights())) > 0


@pytest.mark.parametrize("at", [SWITCH - 1, SWITCH])
def test_an_exception_in_the_closure_loses_nothing(at: int) -> None:
    training = quietly(Training(), at)
    before = training.values()

    def broken() -> None:
        training.model(batch(16)[0])
        raise KeyboardInterrupt

    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        training.opt.step(broken)
    after = training.values()
    if at < SWITCH:  # the closure's own doing, as with any of torch's optimizers
        torch.set_rng_state(state)
        assert differences(before["opt"], after["opt"]) == []
        assert all(torch.equal(before["model"][n], p) for n, p in training.model.named_parameters())
    else:
        assert differences(before, after) == []


def test_a_closure_without_backward_is_refused() -> None:
    training = Training()
    weights = training.weights()
    with pytest.raises(RuntimeError, match="left no gradient"):
        training.opt.step(training.evaluate(0))
    assert training.opt.steps == 0
    assert differences(weights, training.weights()) == []
    with pytest.raises(TypeError, match="closure must be callable"):
        training.opt.step(3.0)  # type: ignore[arg-type]


def test_hand_back() -> None:
    training = quietly(Training(), 6)
    moments = copy.deepcopy(training.opt.first.state_dict())
    training.opt.hand_back("by hand")
    assert differences(moments, training.opt.first.state_dict()) == []
    training.step(6)
    step = next(iter(training.opt.first.state.values()))["step"]
    assert (training.opt.phase, training.opt.reason, float(step)) == ("first", "by hand", SWITCH + 1)


def test_patience() -> None:
    training = quietly(Training(patience=2))
    stuck = {"evaluate": lambda: mse_loss(torch.ones(1), torch.zeros(1))}
    training.step(0, **stuck)
    training.step(1)  # taken, so that the count begins anew
    assert (training.opt.phase, training.opt.failures) == ("second", 0)
    training.step(0, **stuck)
    restored = Training(patience=2, model=training.model)
    restored.opt.load_state_dict(training.opt.state_dict())
    for one in (training, restored):
        one.step(0, **stuck)
        assert one.opt.phase == "first"
        assert one.opt.reason.startswith("2 steps in a row were not taken, at last because the loss")
    patient = quietly(Training())
    for _ in range(5):
        patient.step(0, **stuck)
    assert (patient.opt.phase, patient.opt.failures) == ("second", 5)


def mean_of_moments(adam: torch.optim.Optimizer) -> float:
    states, beta = adam.state.values(), adam.param_groups[0]["betas"][1]
    entries = [s["exp_avg_sq"].flatten() / (1.0 - beta ** float(s["step"])) for s in states]
    return float(torch.cat(entries).mean())


def test_damping_begins_at_the_mean_of_adams_second_moments() -> None:
    training = quietly(Training(carry_over=True))
    expected = mean_of_moments(training.opt.first)
    assert training.hf.param_groups[0]["damping"] == pytest.approx(expected, rel=1e-12)
    assert training.opt.reason == f"4 steps were taken; λ begins at {expected:.3g}, the mean of Adam's second moments"
    training.step(SWITCH)
    assert training.hf.last_step.damping == pytest.approx(expected, rel=1e-12)


def test_it_is_carried_over_once_and_resumed(tmp_path: Path) -> None:
    training, new = quietly(Training(carry_over=True), 6), Training(model=network(seed=99), carry_over=True)
    training.hf.param_groups[0]["damping"] = 0.01
    training.step(6)
    assert training.hf.last_step.damping == 0.01
    damping = training.hf.param_groups[0]["damping"]
    by_state_dicts(training, new, tmp_path)
    assert new.hf.param_groups[0]["damping"] == damping


def test_it_is_kept_within_the_bounds() -> None:
    model = plain_network()
    hf = HessianFree(model.parameters(), damping_bounds=(2.0, 3.0), damping=2.5)
    opt = PhaseSwitch(torch.optim.Adam(model.parameters()), hf, 1)
    mse_loss(model(batch(16)[0]), batch(16)[1]).mul(0.01).backward()
    opt.step()
    assert hf.param_groups[0]["damping"] == 2.0


@pytest.mark.parametrize("first", ["sgd", "momentum", "lbfgs"])
def test_without_second_moments_damping_is_what_was_given(first: str) -> None:
    training = quietly(Training(first, carry_over=True))
    assert (training.opt.phase, training.opt.reason) == ("second", "4 steps were taken")
    assert training.hf.param_groups[0]["damping"] == 0.1


def test_a_second_without_damping_gets_none() -> None:
    model, data = plain_network(), batch(16)
    opt = PhaseSwitch(torch.optim.Adam(model.parameters()), torch.optim.SGD(model.parameters(), lr=0.1), 1)
    for _ in range(2):
        opt.zero_grad()
        mse_loss(model(data[0]), data[1]).backward()
        opt.step()
    assert opt.reason == "1 step was taken"
    assert "damping" not in opt.second.param_groups[0]


# ---------------------------------------------------------------------- as one optimizer


@pytest.mark.parametrize("name", ["StepLR", "OneCycleLR"])
def test_schedulers_act_on_the_first_phase_alone(name: str) -> None:
    def scheduled(opt: torch.optim.Optimizer) -> Any:
        if name == "StepLR":
            return torch.optim.lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
        return torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.05, total_steps=STEPS + 1)

    torch.manual_seed(1)
    training = Training("adam")
    scheduler, rates = scheduled(training.opt), []
    for k in range(STEPS):
        rates.append(training.opt.first.param_groups[0]["lr"])
        training.step(k)
        scheduler.step()
        assert training.hf.param_groups[0]["lr"] == 1.0
    assert len(set(rates)) >= 4
    torch.manual_seed(1)
    other = Training("adam")
    scheduler = scheduled(other.opt.first)
    for k in range(SWITCH):
        other.closure(k)()
        other.opt.first.step()
        assert rates[k] == pytest.approx(other.opt.first.param_groups[0]["lr"], rel=1e-15)
        scheduler.step()
    for k in range(SWITCH, STEPS):
        other.hf.step(other.closure(k), evaluate=other.evaluate(k))
    assert differences(training.model.state_dict(), other.model.state_dict()) == []


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_a_scheduled_switch_steps_itself(duplicate: Callable[[Any], Any]) -> None:
    training = quietly(Training(), 2)
    torch.optim.lr_scheduler.StepLR(training.opt, 2)
    before = training.values()
    twin = Training()
    twin.model, twin.opt = duplicate((training.model, training.opt))
    twin.step(3)
    torch.set_rng_state(before["random numbers"])
    assert differences(before, training.values()) == []
    assert twin.opt.steps == 3


def test_a_scheduler_is_resumed() -> None:
    training, twin = Training(), Training(model=network(seed=99))
    pairs = [(t, torch.optim.lr_scheduler.StepLR(t.opt, 2, gamma=0.5)) for t in (training, twin)]
    for k in range(3):
        training.step(k)
        pairs[0][1].step()
    twin.model.load_state_dict(training.model.state_dict())
    twin.opt.load_state_dict(copy.deepcopy(training.opt.state_dict()))  # torch's optimizers share tensors otherwise
    pairs[1][1].load_state_dict(pairs[0][1].state_dict())
    rng = torch.get_rng_state()
    for one, scheduler in pairs:
        torch.set_rng_state(rng)
        for k in range(3, 7):
            one.step(k)
            scheduler.step()
    assert differences(training.values(), twin.values()) == []


def test_step_hooks_are_called_once() -> None:
    training, calls = Training(), []
    training.opt.register_step_pre_hook(lambda opt, args, kwargs: calls.append("before"))
    training.opt.register_step_post_hook(lambda opt, args, kwargs: calls.append("after"))
    for k in range(SWITCH + 2):
        training.step(k)
    assert calls == ["before", "after"] * (SWITCH + 2)


def test_zero_grad() -> None:
    training = quietly(Training(), 1)
    training.opt.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in training.model.parameters())
    training.opt.zero_grad()
    assert all(p.grad is None for p in training.model.parameters())


def test_gradients_may_be_scaled() -> None:
    training = Training("sgd", when=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    data, weights = batch(16), training.weights()
    scaler.scale(mse_loss(training.model(data[0]), data[1])).backward()
    scaler.step(training.opt)
    assert training.opt.steps == 1
    for p, before in zip(training.model.parameters(), weights, strict=True):
        torch.testing.assert_close(p.detach(), before - 0.02 * p.grad)


def test_add_param_group() -> None:
    training = Training(model=plain_network())
    extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    training.opt.add_param_group({"params": iter([extra]), "lr": 0.5})
    assert training.opt.param_groups[1]["lr"] == 0.5
    assert training.hf.param_groups[1]["params"] == [extra]
    assert training.hf.param_groups[1]["lr"] == 1.0
    assert "second.cg_solution" in quietly(training, 1).opt.state[extra]
    with pytest.raises(TypeError, match="param_group must be a dict"):
        training.opt.add_param_group([extra])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="more than one parameter group"):
        training.opt.add_param_group({"params": [extra]})
    assert len(training.opt.param_groups) == len(training.hf.param_groups) == 2
    other = nn.Parameter(torch.ones(2, dtype=torch.float64))
    training.hf.add_param_group({"params": [other]})
    with pytest.raises(ValueError, match="more than one parameter group"):
        training.opt.add_param_group({"params": [other]})  # the second refuses, and so the first lets go of it
    assert len(training.opt.param_groups) == 2


def test_replaced_groups_are_obeyed() -> None:
    training = Training("sgd")
    training.opt.param_groups = [{**group, "lr": 0.0} for group in training.opt.param_groups]
    weights = training.weights()
    training.step(0)
    assert differences(weights, training.weights()) == []


def test_it_shows_what_it_is() -> None:
    assert repr(Training().opt) == "PhaseSwitch(Adam -> HessianFree, in the first phase: the training begins)"


# ---------------------------------------------------------------------- what is refused


def half_a_detector() -> Any:
    class Half:
        reason = ""

        def update(self, loss: float, optimizer: Any) -> bool:
            return False

    return Half()


@pytest.mark.parametrize(
    ("when", "error", "match"),
    [
        ("later", TypeError, r"a number of steps ≥ 1, a function \(steps, loss\)"),
        (2.5, TypeError, "not 2.5"),
        (True, TypeError, "not True"),
        (None, TypeError, "not None"),
        (Falling, TypeError, r"not <class"),
        (0, ValueError, "when must be ≥ 1, not 0"),
        (half_a_detector(), TypeError, "Half lacks state_dict, load_state_dict"),
    ],
)
def test_bad_conditions(when: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Training(when=when)


def test_different_parameters_are_refused() -> None:
    model = plain_network()
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match=r"second lacks 2, of shape \(2, 4\), \(2,\)"):
        PhaseSwitch(adam, HessianFree(model[0].parameters()), 3)
    with pytest.raises(ValueError, match=r"second lacks 4.*and first lacks 1, of shape \(7,\)"):
        PhaseSwitch(adam, HessianFree([nn.Parameter(torch.ones(7))]), 3)
    with pytest.raises(ValueError, match="one and the same"):
        PhaseSwitch(adam, adam, 3)
    with pytest.raises(TypeError, match="second must be a"):
        PhaseSwitch(adam, HessianFree, 3)  # type: ignore[arg-type]


def test_bad_patience() -> None:
    with pytest.raises(ValueError, match="patience must be ≥ 1"):
        Training(patience=0)
    model = plain_network()
    with pytest.raises(TypeError, match="patience needs a second with a last_step, which SGD has not"):
        PhaseSwitch(torch.optim.Adam(model.parameters()), torch.optim.SGD(model.parameters()), 3, patience=1)


def test_the_state_is_safe_to_load() -> None:
    training, file = quietly(Training(when=Falling()), 6), io.BytesIO()
    torch.save(training.opt.state_dict(), file)
    file.seek(0)
    assert differences(training.opt.state_dict(), torch.load(file, weights_only=True)) == []
