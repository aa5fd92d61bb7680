"""What the integrations share: whose groups the second phase takes over, and what it logs."""

import pytest
import torch
from torch import nn

from latephase.integrations.second_phase import following, logged


@pytest.fixture
def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def groups(layers: nn.Sequential) -> list[dict]:
    return [
        {"params": list(layers[0].parameters()), "weight_decay": 0.1},
        {"params": list(layers[2].parameters()), "weight_decay": 0.0},
    ]


def test_it_has_the_groups_and_the_l2_terms_of_the_first(layers: nn.Sequential) -> None:
    second = following(torch.optim.SGD(groups(layers), lr=0.1), {"damping": 3.0})
    assert [group["weight_decay"] for group in second.param_groups] == [0.1, 0.0]
    assert [group["damping"] for group in second.param_groups] == [3.0, 3.0]
    assert [[id(p) for p in group["params"]] for group in second.param_groups] == [
        [id(p) for p in layer.parameters()] for layer in (layers[0], layers[2])
    ]


def test_a_decoupled_decay_is_no_l2_term(layers: nn.Sequential) -> None:
    second = following(torch.optim.AdamW(groups(layers), lr=0.1), {})
    assert [group["weight_decay"] for group in second.param_groups] == [0.0, 0.0]


def test_a_given_weight_decay_is_that_of_all(layers: nn.Sequential) -> None:
    second = following(torch.optim.SGD(groups(layers), lr=0.1), {"weight_decay": 0.02})
    assert [group["weight_decay"] for group in second.param_groups] == [0.02, 0.02]


def test_its_numbers_are_logged_and_its_words_are_not(layers: nn.Sequential) -> None:
    x = torch.randn(8, 3, dtype=torch.float64)
    second = following(torch.optim.SGD(groups(layers), lr=0.1), {"solver": "direct"})
    second.step(lambda: ((z := layers(x)).square().mean(), z))
    found = logged(second.last_step)
    assert found["hf/damping"] == second.last_step.damping
    assert all(name.startswith("hf/") and isinstance(value, float) for name, value in found.items())
    assert "hf/solver" not in found
    assert second.last_step.as_dict("hf/")["hf/solver"].startswith("direct")
