import pytest
import torch
from tests.finishing.tasks import assert_same, network, state
from torch import nn

from latephase.finishing.checkpoint import MODEL_KEYS, OPTIMIZER_KEYS, load_checkpoint


def trained():
    model = network(seed=3)
    adam = torch.optim.Adam(model.parameters(), lr=0.5)
    model(torch.ones(1, 4, dtype=torch.float64)).sum().backward()
    adam.step()
    return model, adam


def test_a_state_dict_alone(tmp_path):
    old, _ = trained()
    torch.save(old.state_dict(), tmp_path / "model.pt")
    model = network()
    load_checkpoint(tmp_path / "model.pt", model, torch.optim.Adam(model.parameters()))
    assert_same(state(model), state(old))


@pytest.mark.parametrize("optimizer_key", OPTIMIZER_KEYS)
@pytest.mark.parametrize("model_key", MODEL_KEYS)
def test_names_that_people_give(tmp_path, model_key, optimizer_key):
    old, adam = trained()
    torch.save({model_key: old.state_dict(), optimizer_key: adam.state_dict(), "epoch": 3}, tmp_path / "c.pt")
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    load_checkpoint(tmp_path / "c.pt", model, optimizer)
    assert_same(state(model), state(old))
    assert optimizer.param_groups[0]["lr"] == 0.5
    moments = zip(adam.state.values(), optimizer.state.values(), strict=True)
    assert all(torch.equal(a["exp_avg_sq"], b["exp_avg_sq"]) for a, b in moments)


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_it_is_executed(tmp_path, capsys):
    torch.save(Harmful(), tmp_path / "c.pt")
    with pytest.raises(ValueError, match="no file of tensors and numbers; save state dicts"):
        load_checkpoint(tmp_path / "c.pt", network(), None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [([1, 2], "must hold a state dict, not list"), (nn.Linear(4, 1).state_dict(), "not of this network")],
)
def test_what_is_none_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "c.pt", network(), None)
    with pytest.raises(ValueError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "missing.pt", network(), None)
