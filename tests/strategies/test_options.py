"""Options of strategies: how they are read, and which there are."""

import inspect

import pytest
import torch
from tests.study.toy import TOY

from latephase import HessianFree
from latephase.strategies.hf import HF, OPTIONS
from latephase.strategies.options import parse_call, plain, split_list
from latephase.study.show.styles import styles
from latephase.study.strategies.catalogue import find_strategy, parse_strategies


def test_lists_are_split_outside_of_brackets():
    text = "a, b(c=(1, 2), d=[3, 4]),x/my file.py:f(g=1),"
    assert split_list(text) == ["a", "b(c=(1, 2), d=[3, 4])", "x/my file.py:f(g=1)"]


def test_what_reads_alike_is_spelled_alike():
    assert parse_call("hf_m12( damping = .1,cg_max_iter=None )").text == "hf_m12(damping=0.1, cg_max_iter=None)"
    assert parse_call("/a b/c.py:f( x=1 )") == ("/a b/c.py:f", {"x": 1}, "/a b/c.py:f(x=1)")


def test_values_are_pythons_and_words_and_dtypes():
    call = parse_call("a(b=-1e-3, c=True, d=None, e=(1, 2), f=word, g='two words', h=torch.bfloat16)")
    assert list(call.options.values()) == [-1e-3, True, None, (1, 2), "word", "two words", torch.bfloat16]


@pytest.mark.parametrize("text", ["a(1)", "a(b=c.d)", "a(b=print())", "a(**b)", "3", "a(b)(c)", "a(b=torch.load)"])
def test_nothing_else_is_read(text):
    with pytest.raises(ValueError, match="neither a name nor of the form"):
        parse_call(text)


def test_what_stands_for_a_value_tells_it_from_others():
    values = [1, 1.5, "1", None, True, (1, 2), {"a": (1,)}, torch.float32, torch.optim.SGD, torch.optim.Adam]
    assert len({str(plain(value)) + type(value).__name__ for value in values}) == len(values)
    assert plain({"a": (1,)}) == {"a": [1]}
    assert "0x" not in plain(torch.optim.Adam)


def test_all_that_the_optimizer_takes_is_an_option_and_part_of_the_identity():
    """A default that changes is another run."""
    told_elsewhere = {"params", "weight_decay", "verbose"}
    assert set(OPTIONS) == set(inspect.signature(HessianFree).parameters) - told_elsewhere
    settings = HF("hf", 12, 12, 15, options={"damping": 0.1}).settings()
    assert set(OPTIONS) < set(settings)
    assert settings["damping"] == 0.1
    usual = inspect.signature(HessianFree).parameters["cg_max_iter"].default
    assert settings["cg_max_iter"] == usual


def test_batch_sizes_are_options():
    strategy = find_strategy("hf_m12(gradient=30, evaluation=7)", TOY, 60)
    assert isinstance(strategy, HF)
    assert (strategy.curvature, strategy.gradient, strategy.evaluation) == (12, 30, 7)
    assert find_strategy("hf_m50(evaluation=10)", TOY, 60).settings()["curvature"] == 50
    assert find_strategy("lbfgs(batch=30)", TOY, 60).settings()["batch"] == 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf_m12(dampin=0.1)", r"'hf_m12\(dampin=0.1\)' has no option 'dampin'; there are: curvature, gradient, .*dam"),
        ("hf_m12(damping=-1)", r"strategy 'hf_m12\(damping=-1\)': damping must be"),
        ("hf_m12(curvature_opt=fisher)", "curvature_opt must be one of"),
        ("hf_m12(verbose=True)", "has no option 'verbose'"),
        ("hf_large(evaluation=50)", "needs 16 examples and 50 others"),
        ("lbfgs(batch=0)", "batch must be ≥ 1"),
        ("lbfgs(lr=1)", "has no option 'lr'; there are: batch, max_iter, history_size"),
        ("sgd_tenth(schedule=cosine)", "has no option 'schedule'"),
        ("sgd_tenth(lr=-1)", "Invalid learning rate"),
        ("swa(every=0.5)", "every must be an integer"),
    ],
)
def test_what_is_wrong_with_an_option_is_said(text, message):
    with pytest.raises(ValueError, match=message):
        parse_strategies(text, TOY, 60)


def test_variants_are_drawn_in_the_colour_of_the_plain_one():
    names = ["hf_m256", *(f"hf_m256(damping={n})" for n in range(9)), "hf_m1024(lr=1)", "swa(every=3)", "swa"]
    found = styles(names)
    for name in names:
        assert found[name].light == styles([name.partition("(")[0]])[name.partition("(")[0]].light
    assert len({(style.light, style.dashes) for style in found.values()}) == len(names)
    assert len({(style.dark, style.dashes) for style in found.values()}) == len(names)
