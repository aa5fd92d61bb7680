"""Strategies by name, with options, or as many as the data suffice for."""

import pytest
import torch
from tests.study.strategies.twins import generator, twins
from tests.study.toy import TOY, load_data

from latephase.strategies.first_order import SGD_PLATEAU, SGD_TENTH, FirstOrder
from latephase.strategies.hf import HF
from latephase.study.strategies.catalogue import default_strategies, find_strategy, parse_strategies


def test_all_strategies_are_the_papers_that_fit_and_the_baselines():
    baselines = ["sgd_constant", "sgd_tenth", "sgd_cosine", "sgd_plateau", "swa", "lbfgs"]
    large = default_strategies(TOY, 50_000)
    sizes = ["hf_m256", "hf_m1024", "hf_m2048", "hf_m6144"]
    assert [s.name for s in large] == [*baselines, *sizes, "hf_same_batch", "hf_large"]
    assert large[6] == HF("hf_m256", 256, 256, 1024)
    assert large[10] == HF("hf_same_batch", 6144, 6144, 1024, same=True)
    small = default_strategies(TOY, 1297)
    assert [s.name for s in small] == [*baselines, "hf_m256", "hf_same_batch", "hf_large"]
    assert small[6] == HF("hf_m256", 256, 256, 324)
    assert small[7].settings()["gradient"] == 1297


def test_strategies_are_read_from_a_list():
    names = "sgd_tenth, hf_m12,adam(lr=1e-4, betas=(0.8, 0.9)) ,sgd(momentum=0.9, lr=0.1, schedule=plateau)"
    tenth, hf, adam, momentum = parse_strategies(names, TOY, 60)
    assert tenth is SGD_TENTH
    assert hf == HF("hf_m12", 12, 12, 15)
    assert isinstance(adam, FirstOrder)
    assert (adam.optimizer, adam.lr, adam.options) == (torch.optim.Adam, 1e-4, {"betas": (0.8, 0.9)})
    assert isinstance(momentum, FirstOrder)
    assert momentum.schedule is SGD_PLATEAU.schedule
    assert momentum.options == {"momentum": 0.9}
    # A name is one that reads back as the same strategy.
    assert find_strategy(adam.name, TOY, 60) == adam


def test_optimizers_of_the_other_package_have_names_too():
    pytest.importorskip("pytorch_optimizer")
    model, twin = twins()
    strategy = find_strategy("lion(lr=0.001)", TOY, 60)
    assert str(strategy.settings()["optimizer"]).startswith("pytorch_optimizer.")
    strategy.start(TOY, model, load_data(), generator()).step(0.0)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close((p - q).abs(), torch.full_like(p, 0.001))  # a step of Lion is a sign
    with pytest.raises(ValueError, match="Did you mean 'lion'"):
        find_strategy("lionn", TOY, 60)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sgd_cosin", "unknown strategy 'sgd_cosin'. Did you mean 'sgd_cosine'"),
        ("adamm", "Did you mean .*'adam'"),
        ("zzz", "There are: sgd_constant, .*hf_m with any number"),
        ("hf_m50", "'hf_m50' needs 50 examples and 15 others to judge itself, and there are 60"),
        ("adam(lr=-1)", r"'adam\(lr=-1\)': Invalid learning rate"),
        ("adam(rate=1)", "rate"),
        ("adam(lr=1e-3, schedule=step)", "the schedule is one of constant, tenth, cosine, plateau, not 'step'"),
        ("adam(lr=__import__('os'))", "neither a name nor of the form"),
        ("", "names with commas between"),
        ("a b", "names with commas between"),
    ],
)
def test_what_is_wrong_with_a_list_of_strategies_is_said(text, message):
    with pytest.raises(ValueError, match=message):
        parse_strategies(text, TOY, 60)
