"""Which loss a closure has: what it returned with outputs, or else what it called backward on."""

import pytest
import torch
from tests.contract import batch, differences, plain_network
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from latephase import HessianFree
from latephase.curvature.returned import Told, loss_and_outputs

LOSS, HALF = torch.tensor(2.0, requires_grad=True) * 1.0, torch.tensor(1.0, requires_grad=True) * 1.0
Z = torch.ones(3)


@pytest.mark.parametrize(
    ("returned", "differentiated", "loss", "outputs"),
    [
        (LOSS, [], 2.0, None),
        (LOSS, [LOSS], 2.0, None),
        (LOSS.detach(), [LOSS], 2.0, None),
        (2.0, [LOSS], 2.0, None),
        (None, [LOSS], 2.0, None),
        (LOSS, [HALF], 1.0, None),
        ({"loss": LOSS}, [LOSS], 2.0, None),
        (None, [LOSS, HALF, HALF], 4.0, None),
        ((LOSS, Z), [], 2.0, Z),
        ((LOSS, Z), [HALF], 2.0, Z),
        ((LOSS.detach(), Z), [HALF], 1.0, Z),
        (LOSS.detach(), [], 2.0, None),
        (Told(LOSS, Z), [], 2.0, Z),
        (Told(None, Z), [LOSS, HALF], 3.0, Z),
        (Told((LOSS, torch.zeros(1)), Z), [HALF], 2.0, Z),
    ],
)
def test_the_loss(returned, differentiated, loss, outputs):
    found = loss_and_outputs(returned, differentiated, lambda: None)
    assert found[0].item() == loss
    assert found[1] is outputs


def closure():
    return None


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, r"closure\(\) must return a scalar loss tensor or \(loss, outputs\), or call backward\(\)"),
        (2.0, TypeError, "not return float"),
        ((LOSS, Z, Z), TypeError, "a tuple of 3: "),
        (Z, ValueError, r"one real floating-point number, not a tensor of shape \(3,\)"),
        (torch.tensor(1), ValueError, "int64"),
    ],
)
def test_no_loss_is_refused(returned, error, message):
    with pytest.raises(error, match=message):
        loss_and_outputs(returned, [], closure)


class Training:
    """Steps with closures of one kind on a network of its own."""

    def __init__(self, write, **options):
        self.model, self.data = plain_network(), batch(40, seed=3)
        self.opt = HessianFree(self.model.parameters(), weight_decay=0.01, **options)
        self.write = write

    def loss(self):
        return mse_loss(self.model(self.data[0]), self.data[1])

    def step(self):
        return self.opt.step(lambda: self.write(self))


def explicit(t):
    z = t.model(t.data[0])
    return mse_loss(z, t.data[1]), z


def ordinary(t):
    t.opt.zero_grad()
    loss = t.loss()
    loss.backward()
    return loss


def detached(t):
    t.opt.zero_grad()
    loss = t.loss()
    loss.backward()
    return loss.detach()


def a_number(t):
    loss = t.loss()
    torch.autograd.backward([loss])
    return loss.item()


def nothing(t):
    t.loss().backward()


def logged(t):
    """A trainer's, which returns what it logs."""
    loss = t.loss()
    loss.backward()
    return {"loss": loss.detach(), "log": {}}


def in_two(t):
    z, y = t.model(t.data[0]), t.data[1]
    (0.25 * mse_loss(z, y)).backward(retain_graph=True)
    (0.75 * mse_loss(z, y)).backward()


@pytest.mark.parametrize("solver", [None, "direct", "krylov", "sampled", "quasi-newton", "auto"])
@pytest.mark.parametrize("write", [ordinary, detached, a_number, nothing, logged])
def test_steps_are_those_of_the_explicit_closure_to_the_bit(write, solver):
    one, other = Training(explicit, solver=solver), Training(write, solver=solver)
    for _ in range(4):
        assert one.step() == other.step()
    assert differences(one.model.state_dict(), other.model.state_dict()) == []
    assert one.opt.last_step.counts == other.opt.last_step.counts


def test_several_backward_passes_add_up():
    one, other = Training(explicit), Training(in_two)
    for _ in range(3):
        assert one.step() == pytest.approx(other.step(), rel=1e-9)
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("named", [False, True])
def test_a_weighted_backward_pass_is_never_taken_for_a_plain_one(named):
    """The loss is then what is returned, as ever; a detached one is refused."""

    def weighted(t, *, detach):
        loss, weight = t.loss(), torch.tensor(3.0, dtype=torch.float64)
        loss.backward(retain_graph=True)
        loss.backward(gradient=weight) if named else torch.autograd.backward([loss], [weight])
        return loss.detach() if detach else loss

    one, other = Training(explicit), Training(lambda t: weighted(t, detach=False))
    assert one.step() == other.step()
    with pytest.raises(ValueError, match="no graph"):
        Training(lambda t: weighted(t, detach=True)).step()


def test_the_graph_is_let_go():
    """What backward was called on is not kept beyond the evaluation."""
    import gc
    import weakref

    kept: list[weakref.ref[Tensor]] = []

    def write(t):
        loss = t.loss()
        kept.append(weakref.ref(loss))
        loss.backward()

    training = Training(write)
    training.step()
    gc.collect()
    assert all(ref() is None for ref in kept)


def test_micro_batches_keep_to_loss_and_outputs():
    """acc_step calls loss functions itself."""
    model, data = plain_network(), batch(40, seed=3)
    opt = HessianFree(model.parameters())
    parts = list(zip(*(t.split(10) for t in data), strict=True))
    assert opt.acc_step(model, nn.MSELoss(), parts) < mse_loss(plain_network()(data[0]), data[1])
