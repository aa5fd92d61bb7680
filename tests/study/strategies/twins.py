"""Two copies of a network: one for a strategy, one for what it is held against."""

import torch
from tests.study.toy import TOY, build_model


def generator():
    return torch.Generator().manual_seed(3)


def twins(build=build_model):
    torch.manual_seed(0)
    model = build()
    twin = build()
    twin.load_state_dict(model.state_dict())
    return model, twin


def assert_same(model, twin, **tolerances):
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerances)


def objective(model, batch):
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    penalty = 0.5 * TOY.weight_decay * sum((w**2).sum() for w in weights)
    return TOY.loss(model(batch.inputs), batch.targets) + penalty
