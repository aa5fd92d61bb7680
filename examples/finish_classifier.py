"""A plain training of a small network on scikit-learn's digits, and the finish: the last statement is all it takes."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import latephase

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16.0, torch.tensor(labels)
loader = DataLoader(TensorDataset(x[:1300], y[:1300]), batch_size=32, shuffle=True)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(5):  # epochs
    for inputs, targets in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

valid = x[1300:], y[1300:]
print(latephase.finish(model, nn.CrossEntropyLoss(), loader, budget="5s", valid_data=valid, optimizer=optimizer))
