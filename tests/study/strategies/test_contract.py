"""What holds for every strategy that is declared, and for some with options, whatever it does."""

import json
from dataclasses import replace

import pytest
import torch
from tests.study.toy import TOY, build_model, load_data, silent
from torch import nn

from latephase.strategies.strategy import Family, Strategy, TooFewExamplesError
from latephase.study.runs.budget import Allowance, Budget
from latephase.study.runs.plan import plan_run
from latephase.study.runs.runner import resume
from latephase.study.strategies.catalogue import NAMES, find_strategy
from latephase.study.strategies.order import in_order
from latephase.study.strategies.registry import DECLARATIONS

EXAMPLES = 60
# An option of each that changes what its steps do; those of the paper's sizes need more examples than the toy has.
OPTIONS = {
    "sgd_constant": "momentum=0.9",
    "sgd_tenth": "lr=0.01",
    "sgd_cosine": "lr=0.01",
    "sgd_plateau": "momentum=0.5, nesterov=True",
    "adam_cosine": "lr=0.01, betas=(0.8, 0.9)",
    "muon_cosine": "momentum=0.5",
    "kfac_cosine": "damping=0.5",
    "swa": "every=2",
    "lbfgs": "batch=20, max_iter=2",
    "scipy_lbfgs": "batch=20, max_iter=2",
    "ssbroyden": "batch=20",
    "hf_equal": "damping=0.1",
    "hf_large": "gradient=40, curvature_opt=hessian",
    "hf_same_batch": "adapt_damping=False, cg_max_iter=3",
    "hf_auto": "solver=krylov",
    "finish": "strategies=['l-bfgs']",
    "hf_m": "lr=0.5, nonpos_curv_option='saddle-free'",
}
NUMBERED = [f"{declaration.name}12" for declaration in DECLARATIONS if declaration.numbered]


def fits(name):
    try:
        return bool(find_strategy(name, TOY, EXAMPLES))
    except TooFewExamplesError:
        return False


PLAIN = [name for name in (*NAMES, *NUMBERED) if fits(name)]
VARIANTS = [f"{name}({OPTIONS.get(name, OPTIONS.get(name.rstrip('0123456789'), ''))})" for name in PLAIN]
EVERY = [*PLAIN, *(name for name in VARIANTS if not name.endswith("()")), "adamw(lr=0.01)"]


def found(name):
    return find_strategy(name, TOY, EXAMPLES)


def started(name, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(*build_model(), nn.BatchNorm1d(3).double(), nn.Dropout(0.1))
    return found(name).start(TOY, model, load_data(), torch.Generator().manual_seed(seed))


def state(trainer):
    """What is judged, to the bit, buffers included."""
    return {name: value.clone() for name, value in trainer.judged().state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_names_and_styles_are_unique():
    names = [declaration.name for declaration in DECLARATIONS]
    assert len({*names}) == len(names)
    assert set(in_order(names)) == set(names)
    shown = [d.style for d in DECLARATIONS if d.style is not None]
    assert len(shown) == len(NAMES)
    assert len({(style.light, style.dashes) for style in shown}) == len(shown)
    assert len({(style.dark, style.dashes) for style in shown}) == len(shown)


@pytest.mark.parametrize("declaration", DECLARATIONS, ids=lambda declaration: declaration.name)
def test_a_declaration_says_what_its_strategy_is(declaration):
    name = f"{declaration.name}12" if declaration.numbered else declaration.name
    strategy = declaration.build(name, TOY, 50_000)
    assert isinstance(strategy, Strategy)
    assert (strategy.name, strategy.family) == (name, declaration.family)
    assert isinstance(declaration.family, Family)
    assert declaration.options
    assert declaration.name in PLAIN or declaration.numbered or not fits(declaration.name)


@pytest.mark.parametrize("name", EVERY)
def test_a_name_reads_back_as_the_same_strategy(name):
    assert found(name).name == name
    assert found(found(name).name).settings() == found(name).settings()


@pytest.mark.parametrize("name", EVERY)
def test_settings_are_what_json_holds(name):
    settings = found(name).settings()
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize("name", [name for name in VARIANTS if not name.endswith("()")])
def test_options_change_settings_identity_and_steps(name):
    plain, variant = found(name.partition("(")[0]), found(name)
    assert plain.settings() != variant.settings()
    identities = {plan_run("training", 1, strategy, 0, Budget.parse("9s")).identity for strategy in (plain, variant)}
    assert len(identities) == 2
    # Nor is it the name alone that tells them apart.
    records = [replace(plan_run("training", 1, s, 0, Budget.parse("9s")), strategy="", reference="") for s in
               (plain, variant)]  # fmt: skip
    assert records[0].identity != records[1].identity
    one, other = started(plain.name), started(name)
    for trainer in (one, other):
        for number in range(6):
            trainer.step(number / 12)
    assert any(not torch.equal(value, state(other)[key]) for key, value in state(one).items())


@pytest.mark.parametrize("name", EVERY)
def test_steps_change_the_network_and_count_their_work(name):
    trainer = started(name)
    before = state(trainer)
    steps = [trainer.step(share) for share in (0.0, 0.3, 0.6)]
    assert all(step.gradients > 0 for step in steps)
    after = state(trainer)
    assert before.keys() == after.keys()
    moved = [key for key in before if key.endswith("weight")]
    assert any(not torch.equal(before[key], after[key]) for key in moved)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("taken", [0, 1, 3, 6, 9])
def test_a_step_is_taken_back_to_the_bit(name, taken):
    """Also that with which a strategy changes what it judges: SWA after one step or nine, others at half."""
    trainer = started(name)
    for number in range(taken):
        trainer.step(number / 12)
    before = state(trainer)
    snapshot = trainer.snapshot()
    trainer.step(taken / 12)
    trainer.restore(snapshot)
    assert_equal(state(trainer), before)
    trainer.restore(snapshot)  # a snapshot is a copy, and so does not change
    assert_equal(state(trainer), before)


@pytest.mark.parametrize("name", EVERY)
def test_a_snapshot_and_its_return_disturb_no_later_step(name):
    one, other = started(name), started(name)
    torch.manual_seed(1)
    for number in range(4):
        one.step(number / 12)
    torch.manual_seed(1)
    for number in range(4):
        other.restore(other.snapshot())
        other.step(number / 12)
    assert_equal(state(one), state(other))


@pytest.mark.parametrize("name", EVERY)
def test_runs_of_one_seed_are_equal_to_the_bit_and_of_two_are_not(name):
    torch.manual_seed(0)
    checkpoint = build_model().state_dict()

    def run(seed):
        torch.rand(3)  # whatever was drawn before
        made = resume(
            TOY, load_data(), checkpoint, found(name), allowance=Allowance(300.0, "gradients"), seed=seed,
            progress=silent,
        )  # fmt: skip
        return made.network, [(p.steps, p.gradients, p.train_loss, p.test_loss) for p in made.curve]

    (network, curve), (again, same) = run(1), run(1)
    assert_equal(network, again)
    assert curve == same
    assert len(curve) > 1
    deterministic = found(name).settings().get("batch", 0) == EXAMPLES or found(name).settings().get("same")
    assert deterministic or run(2)[1] != curve
