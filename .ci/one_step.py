"""One step of the optimizer, where nothing is installed but torch: least squares, solved by it."""

import importlib.util

import torch

from latephase import HessianFree, Outcome

assert importlib.util.find_spec("typer") is None, "this is to run without what the study needs"

model = torch.nn.Linear(2, 1)
x, y = torch.eye(2), torch.tensor([[1.0], [3.0]])


def forward() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and the outputs."""
    outputs = model(x)
    return torch.nn.functional.mse_loss(outputs, y), outputs


optimizer = HessianFree(model.parameters(), damping=1e-6)
loss = optimizer.step(forward)
assert optimizer.last_step is not None
assert optimizer.last_step.outcome is Outcome.ACCEPTED, str(optimizer.last_step)
assert loss is not None
assert loss < 1e-6, str(optimizer.last_step)
