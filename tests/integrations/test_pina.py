"""A second phase for PINA, whose tensors have labels, and whose Trainer is one of Lightning."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import pytest
import torch

from latephase.curvature import ggn
from latephase.integrations.lightning import LatePhase

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pina import Condition, Trainer
    from pina.domain import CartesianDomain
    from pina.equation import Equation
    from pina.equation.zoo import FixedValue
    from pina.model import FeedForward
    from pina.operator import laplacian
    from pina.optim import TorchOptimizer
    from pina.problem import SpatialProblem
    from pina.solver import PhysicsInformedSingleModelSolver

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def source(points: Any, u: Any) -> Any:
    """The residual of u″ = −π² sin(πx)."""
    return laplacian(u, points, components=["u"], d=["x"]) + torch.pi**2 * torch.sin(torch.pi * points.extract(["x"]))


class Poisson(SpatialProblem):
    """Its solution is sin(πx)."""

    output_variables: ClassVar = ["u"]
    spatial_domain = CartesianDomain({"x": [0, 1]})
    domains: ClassVar = {
        "left": CartesianDomain({"x": 0.0}),
        "right": CartesianDomain({"x": 1.0}),
        "inside": CartesianDomain({"x": [0, 1]}),
    }
    conditions: ClassVar = {
        "left": Condition(domain="left", equation=FixedValue(0.0)),
        "right": Condition(domain="right", equation=FixedValue(0.0)),
        "inside": Condition(domain="inside", equation=Equation(source)),
    }


def solver() -> Any:
    torch.manual_seed(0)
    problem = Poisson()
    problem.discretise_domain(20, "grid", domains=["inside"])
    problem.discretise_domain(1, "grid", domains=["left", "right"])
    model = FeedForward(input_dimensions=1, output_dimensions=1, layers=[10, 10], func=torch.nn.Tanh)
    return PhysicsInformedSingleModelSolver(problem, model, optimizer=TorchOptimizer(torch.optim.Adam, lr=1e-2))


def test_the_end_of_a_training_of_pinas() -> None:
    late, pinn = LatePhase(start=30, evaluation="same", solver="auto"), solver()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(pinn, max_epochs=70, accelerator="cpu", callbacks=[late], enable_checkpointing=False, **quiet).train()
    assert late.switch is not None
    record = late.switch.second.last_step  # type: ignore[attr-defined]
    assert record.solver.startswith(("direct", "self-scaled Broyden"))
    assert record.loss_after < 1e-6
    x = torch.linspace(0.0, 1.0, 50).unsqueeze(1)
    with torch.no_grad():
        torch.testing.assert_close(pinn.model(x), torch.sin(torch.pi * x), rtol=0.0, atol=1e-3)


def test_products_are_fast_and_right() -> None:
    """Labels are the closure's affair: products are those of the same residuals without."""
    pinn = solver()
    points = pinn.problem.discretised_domains["inside"]
    parameters = list(pinn.model.parameters())

    def labelled() -> tuple[Any, Any]:
        points.requires_grad_()
        residual = source(points, pinn.forward(points))
        return residual.square().mean(), residual

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        x = points.as_subclass(torch.Tensor).detach().requires_grad_()
        u = pinn.model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        residual = bend + torch.pi**2 * torch.sin(torch.pi * x)
        return residual.square().mean(), residual

    C, expected = ggn(labelled, parameters), ggn(plain, parameters)
    assert C.backend == "linearize", C.explain()
    v = torch.randn(sum(p.numel() for p in parameters), generator=torch.Generator().manual_seed(1))
    assert type(C @ v) is torch.Tensor
    torch.testing.assert_close(C @ v, expected @ v, rtol=1e-4, atol=1e-5)
