"""Derivatives that come along in the forward pass, against automatic differentiation."""

import pytest
import torch

from latephase.study.problems.tanh_network import TanhNetwork


def second_derivatives(u, points):
    """∂u/∂xᵢ and ∂²u/∂xᵢ², each [d, N], by differentiating twice."""
    (slopes,) = torch.autograd.grad(u.sum(), points, create_graph=True)
    columns = range(points.shape[1])
    seconds = [torch.autograd.grad(slopes[:, i].sum(), points, create_graph=True)[0][:, i] for i in columns]
    return slopes.T, torch.stack(seconds)


@pytest.mark.parametrize("widths", [(2, 5), (2, 6, 4, 3), (3, 4, 4), (1, 7)])
@pytest.mark.parametrize("factors", [(1.0, 1.0, 1.0), (-4.0, 1.0, 0.5), (0.0, 2.0, 0.0), (0.3, 0.0, 0.0)])
def test_jet(widths, factors):
    torch.manual_seed(0)
    network = TanhNetwork(*widths).double()
    points = torch.randn(9, widths[0], dtype=torch.float64, requires_grad=True)
    coefficients = factors[: widths[0]]
    u = network(points)
    slopes, seconds = second_derivatives(u, points)
    jet = network.jet(points.detach(), coefficients)
    torch.testing.assert_close(jet.value, u)
    torch.testing.assert_close(jet.slopes, slopes)
    torch.testing.assert_close(jet.second, torch.einsum("d,dn->n", torch.tensor(coefficients).double(), seconds))


def test_a_jet_has_the_gradients_of_what_it_stands_for():
    torch.manual_seed(0)
    network = TanhNetwork(2, 5, 4).double()
    points = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    slopes, seconds = second_derivatives(network(points), points)
    expected = torch.autograd.grad((slopes[0] * seconds.sum(dim=0)).sum(), list(network.parameters())[:-1])
    jet = network.jet(points.detach(), (1.0, 1.0))
    found = torch.autograd.grad((jet.slopes[0] * jet.second).sum(), list(network.parameters())[:-1])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
