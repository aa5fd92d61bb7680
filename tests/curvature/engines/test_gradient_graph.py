"""The gradient's derivative against the dense Hessian."""

import torch
from tests.curvature.networks import closure, network, point_at

from latephase.curvature.engines.gradient_graph import GradientGraph


def test_the_derivative_of_the_gradient_is_the_hessian_times_the_vector():
    model = network()
    forward, params = closure(model), dict(model.named_parameters())
    engine = GradientGraph(point_at(forward, params.values()))
    v = [torch.randn_like(p) for p in params.values()]

    grads = torch.autograd.grad(forward()[0], params.values(), create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in grads])
    rows = [torch.autograd.grad(g, params.values(), retain_graph=True, materialize_grads=True) for g in flat]
    H = torch.stack([torch.cat([piece.reshape(-1) for piece in row]) for row in rows])
    product = torch.cat([piece.reshape(-1) for piece in engine.derivative(v)])
    torch.testing.assert_close(product, H @ torch.cat([piece.reshape(-1) for piece in v]), rtol=1e-12, atol=1e-14)
