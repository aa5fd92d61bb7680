"""A physics-informed network for -u'' = π² sin(πx) on [0, 1], u = 0 at both ends: the loss comes as a closure."""

import math

import torch
from torch import Tensor, nn

import latephase

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
model = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))
x = torch.linspace(0.0, 1.0, 100)[:, None].requires_grad_()
ends = torch.tensor([[0.0], [1.0]])


def residuals() -> tuple[Tensor, Tensor]:
    """Return the loss and what it is the half sum of squares of."""
    u = model(x)
    du = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    d2u = torch.autograd.grad(du.sum(), x, create_graph=True)[0]
    inside = (d2u + math.pi**2 * torch.sin(math.pi * x)) / math.sqrt(len(x))
    r = torch.cat([inside, model(ends)])
    return 0.5 * r.square().sum(), r


adam = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(500):
    adam.zero_grad()
    residuals()[0].backward()
    adam.step()

print(latephase.finish(model, residuals, budget="10s", optimizer=adam))
error = (model(x) - torch.sin(math.pi * x)).abs().max()
print(f"largest error of the solution: {error:.1e}")
