"""For the command line: `latephase finish examples/my_module.py:build --checkpoint model.pt --budget 10min`."""

import torch
from sklearn.datasets import load_digits
from torch import nn


def build() -> dict[str, object]:
    """Return what `latephase.finish` takes. The checkpoint is loaded into model and optimizer."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16.0, torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return {
        "model": model,
        "loss_func": nn.CrossEntropyLoss(),
        "train_data": (x[:1300], y[:1300]),
        "valid_data": (x[1300:], y[1300:]),
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-3),
        "batch_size": 32,
    }
