"""Each engine's J v, Jᵀu and H w against dense matrices."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tests.curvature.networks import network, point_at
from torch.func import functional_call, hessian, jacrev

from latephase.curvature.engines.double_backward import DoubleBackward
from latephase.curvature.engines.linearize import Linearization, trace
from latephase.curvature.options import DEFAULT_OPTIONS

ENGINES = {
    "linearize": lambda point: Linearization(trace(point, DEFAULT_OPTIONS), point),
    "double-backward": DoubleBackward,
}


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


@pytest.mark.parametrize("name", ENGINES)
def test_the_factors_are_those_of_dense_matrices(name):
    model, x, y = network(), torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    params = {name: p.detach() for name, p in model.named_parameters()}
    z = model(x).detach()
    J = torch.cat([j.reshape(18, -1) for j in jacrev(lambda p: functional_call(model, p, x))(params).values()], dim=1)
    H = hessian(lambda z: F.cross_entropy(z, y))(z).reshape(18, 18)

    def forward():
        outputs = model(x)
        return F.cross_entropy(outputs, y), outputs

    engine = ENGINES[name](point_at(forward, model.parameters()))
    v, u = [torch.randn_like(p) for p in params.values()], torch.randn_like(z)
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(flat(engine.jvp(v)), J @ flat(v), **close)
    torch.testing.assert_close(flat(engine.vjp([u])), J.T @ flat([u]), **close)
    torch.testing.assert_close(flat(engine.hvp([u])), H @ flat([u]), **close)
    torch.testing.assert_close(engine.slopes[0], torch.func.grad(lambda z: F.cross_entropy(z, y))(z), **close)


def test_released_residuals_are_computed_again():
    model, x = network(), torch.randn(6, 4, dtype=torch.float64)

    def forward():
        outputs = model(x)
        return outputs.pow(4).sum(), outputs

    engine = ENGINES["linearize"](point_at(forward, model.parameters()))
    v = [torch.randn_like(p) for p in model.parameters()]
    before = engine.jvp(v)
    engine.release()
    assert engine._residuals is None
    assert torch.equal(engine.jvp(v)[0], before[0])
