from dataclasses import replace

import pytest
import torch
from tests.study.toy import TOY, build_model, load_data
from torch import nn

from latephase import HessianFree
from latephase.study.data import batches
from latephase.study.runs.evaluation import evaluate
from latephase.study.strategies.catalogue import default_strategies, find_strategy, parse_strategies
from latephase.study.strategies.first_order import SGD_CONSTANT, SGD_COSINE, SGD_PLATEAU, SGD_TENTH, FirstOrder
from latephase.study.strategies.hf import HF, hf_equal, hf_large
from latephase.study.strategies.lbfgs import LBFGS
from latephase.study.strategies.schedules import cosine
from latephase.study.strategies.swa import SWA


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


@pytest.mark.parametrize(
    ("strategy", "learning_rates"),
    [
        (SGD_CONSTANT, [0.5, 0.5, 0.5]),
        (SGD_TENTH, [0.05, 0.05, 0.05]),
        (SGD_COSINE, [0.5, 0.25, 0.0]),
        (SGD_PLATEAU, [0.5, 0.5, 0.5]),
    ],
)
def test_sgd_steps_down_the_gradient_of_the_objective(strategy, learning_rates):
    model, twin = twins()
    data = load_data()
    trainer = strategy.start(TOY, model, data, generator())
    stream = batches.endless(data, TOY.batch_size, generator())
    for spent, lr in zip((0.0, 0.5, 1.0), learning_rates, strict=True):
        step = trainer.step(spent)
        assert (step.gradients, step.record) == (1.0, None)
        assert step.lr == pytest.approx(lr, abs=1e-12)
        grads = torch.autograd.grad(objective(twin, next(stream)), list(twin.parameters()))
        with torch.no_grad():
            for p, g in zip(twin.parameters(), grads, strict=True):
                p -= lr * g
        assert_same(model, twin)


def test_any_optimizer_minimises_the_same_objective():
    model, twin = twins()
    data = load_data()
    trainer = find_strategy("adamw(lr=0.01, weight_decay=0.0, schedule=cosine)", TOY, 60).start(
        TOY, model, data, generator()
    )
    adam = torch.optim.Adam(twin.parameters(), lr=0.01)
    stream = batches.endless(data, TOY.batch_size, generator())
    for spent in (0.0, 0.3, 0.6):
        trainer.step(spent)
        adam.param_groups[0]["lr"] = 0.01 * cosine()(spent, None)
        adam.zero_grad()
        objective(twin, next(stream)).backward()
        adam.step()
        assert_same(model, twin)


PEERS = ["adam_cosine(lr=0.01)", "muon_cosine(lr=0.01)", "scipy_lbfgs", "ssbroyden"]
EVERY = [*(s.name for s in default_strategies(TOY, 60)), "hf_m12", "hf_equal", "adamw(lr=0.01)", *PEERS]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("frozen", ["1", "3", "1.weight 3.weight", "1.bias 3.bias"])
def test_frozen_parameters_stay_where_they_are_and_the_others_are_trained(name, frozen):
    model, twin = twins()
    for part in frozen.split():
        at = model.get_parameter(part) if "." in part else model.get_submodule(part)
        at.requires_grad_(False)
    trainer = find_strategy(name, TOY, 60).start(TOY, model, load_data(), generator())
    before = evaluate(TOY, model, load_data()).train_loss
    for _ in range(10):
        trainer.step(0.0)
    for judged in (model, trainer.judged()):
        for p, q in zip(judged.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p, q) != p.requires_grad
    assert evaluate(TOY, trainer.judged(), load_data()).train_loss < before


def test_frozen_weights_are_not_in_the_objective():
    """Else the train loss of the curves were not what a Hessian-free step compares."""
    model, _ = twins()
    model[1].requires_grad_(False)
    assert TOY.l2_term(model) == pytest.approx(0.5 * TOY.weight_decay * model[3].weight.square().sum().item())
    everything = replace(TOY, curvature_batch=30, gradient_batch=60, evaluation_batch=30)
    problem = HF("hf", 60, 60, 0, same=True).start(everything, model, load_data(), generator())
    before = evaluate(TOY, model, load_data()).train_loss
    assert problem.step(0.0).record.loss_before == pytest.approx(before)


@pytest.mark.parametrize("name", ["sgd_constant", "adagrad", "lbfgs", "scipy_lbfgs", "ssbroyden"])
def test_the_l2_term_covers_a_weight_that_the_loss_does_not_depend_on(name):
    model, _ = twins()
    model.register_parameter("unused", nn.Parameter(torch.ones(2, 2, dtype=torch.float64)))
    find_strategy(name, TOY, 60).start(TOY, model, load_data(), generator()).step(0.0)
    assert (model.unused < 1).all()


def test_an_optimizer_that_wants_a_graph_of_the_gradients_is_refused():
    pytest.importorskip("pytorch_optimizer")

    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).double()

    model, _ = twins(build)
    trainer = find_strategy("sophiah(lr=0.01)", TOY, 60).start(TOY, model, load_data(), generator())
    with pytest.raises(RuntimeError, match="does not require grad"):
        trainer.step(0.0)


def test_swa_judges_the_mean_of_the_iterates():
    model, twin = twins()
    data = load_data()
    swa, sgd = SWA(every=2).start(TOY, model, data, generator()), SGD_CONSTANT.start(TOY, twin, data, generator())
    iterates = []
    for number in range(1, 7):
        swa.step(0.0)
        sgd.step(0.0)
        if number == 1:
            assert swa.judged() is model
        if number % 2 == 0:
            iterates.append([p.detach().clone() for p in twin.parameters()])
    for p, *values in zip(swa.judged().parameters(), *iterates, strict=True):
        torch.testing.assert_close(p, torch.stack(values).mean(0))
    assert_same(model, twin)


def normed():
    return torch.nn.Sequential(*build_model(), torch.nn.BatchNorm1d(3).double(), torch.nn.Dropout(0.3))


def test_the_statistics_of_swa_are_those_of_the_mean_network_and_change_no_later_step():
    model, twin = twins(normed)
    data = load_data()
    torch.manual_seed(1)
    swa, other = (SWA(every=1).start(TOY, m, data, generator()) for m in (model, twin))
    for _ in range(3):
        swa.step(0.0)
    judged = swa.judged()
    last = TOY.batch_size * (len(data.train) // TOY.batch_size)
    assert last < len(data.train)
    means = [judged[:-2](part).mean(0) for part in data.train.inputs.split(TOY.batch_size)]
    torch.testing.assert_close(judged[-2].running_mean, torch.stack(means).mean(0))
    swa.step(0.0)
    torch.manual_seed(1)
    for _ in range(4):
        other.step(0.0)
    assert_same(model, twin)


def test_swa_leaves_the_statistics_of_a_frozen_layer_alone():
    def build():
        frozen = torch.nn.BatchNorm2d(1).double().eval()
        torch.nn.init.constant_(frozen.running_mean, 0.25)
        torch.nn.init.constant_(frozen.running_var, 4.0)
        return torch.nn.Sequential(frozen, *build_model(), torch.nn.BatchNorm1d(3).double())

    model, _ = twins(build)
    swa = SWA(every=1).start(TOY, model, load_data(), generator())
    evaluate(TOY, swa.judged(), load_data())
    swa.step(0.0)
    evaluate(TOY, swa.judged(), load_data())
    judged = swa.judged()
    assert judged[0].running_mean.tolist() == [0.25]
    assert judged[0].running_var.tolist() == [4.0]
    assert judged[-1].num_batches_tracked == 8  # 60 examples in batches of 8
    assert judged[-1].momentum == 0.1


def test_lbfgs_is_the_optimizer_on_one_batch(monkeypatch):
    monkeypatch.setattr(batches, "_CHUNK", 17)
    model, twin = twins()
    data = load_data()
    trainer = LBFGS("lbfgs", 40).start(TOY, model, data, generator())
    batch = next(batches.endless(data, 40, generator()))
    optimizer = torch.optim.LBFGS(twin.parameters(), max_iter=4, line_search_fn="strong_wolfe")
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = objective(twin, batch)
        loss.backward()
        return loss

    for _ in range(3):
        calls = 0
        work = trainer.step(0.0).gradients
        optimizer.step(closure)
        assert work == calls * 40 / TOY.batch_size
        assert_same(model, twin, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("strategy", default_strategies(TOY, 60), ids=lambda strategy: strategy.name)
def test_every_strategy_trains_a_network_whose_weights_are_channels_last(strategy):
    def build():
        layers = nn.Conv2d(1, 4, 2, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Flatten()
        return nn.Sequential(*layers).double().to(memory_format=torch.channels_last)

    torch.manual_seed(0)
    model, data = build(), load_data()
    trainer = strategy.start(TOY, model, data, generator())
    before = evaluate(TOY, model, data).train_loss
    for _ in range(10):
        trainer.step(0.0)
    assert evaluate(TOY, trainer.judged(), data).train_loss < before


@pytest.mark.parametrize(("strategy", "gradient"), [(hf_equal(TOY), 16), (hf_large(TOY), 32)])
@pytest.mark.parametrize("chunk", [2048, 7])
def test_hf_is_the_optimizer_on_the_batches_drawn(strategy, gradient, chunk, monkeypatch):
    monkeypatch.setattr(batches, "_CHUNK", chunk)
    model, twin = twins()
    data = load_data()
    trainer = strategy.start(TOY, model, data, generator())
    optimizer = HessianFree(TOY.parameter_groups(twin))
    stream = batches.hessian_free(data, curvature=16, gradient=gradient, evaluation=20, generator=generator())
    for _ in range(3):
        record = trainer.step(0.0).record
        curvature, gradient_only, evaluation = next(stream)
        union = (
            torch.cat([curvature.inputs, gradient_only.inputs]),
            torch.cat([curvature.targets, gradient_only.targets]),
        )
        optimizer.acc_step(
            twin,
            TOY.loss,
            loss_datalist=[(evaluation.inputs, evaluation.targets)],
            grad_datalist=[union],
            mvp_datalist=[(curvature.inputs, curvature.targets)],
        )
        assert_same(model, twin, rtol=1e-8, atol=1e-10)
        assert record.cg_iterations == optimizer.last_step.cg_iterations


def test_the_same_batch_judges_itself():
    model, _ = twins()
    record = HF("hf_same_batch", 24, 24, 0, same=True).start(TOY, model, load_data(), generator()).step(0.0).record
    assert record.loss_before == record.loss_model
    record = hf_equal(TOY).start(TOY, model, load_data(), generator()).step(0.0).record
    assert record.loss_before != record.loss_model


def test_a_gradient_on_all_the_data_can_be_asked_for():
    model, twin = twins()
    problem = replace(TOY, gradient_batch=60)
    hf_large(problem).start(problem, model, load_data(), generator()).step(0.0)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


# ---------------------------------------------------------------------- by name


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
    assert small[7].gradient == 1297


def test_strategies_are_read_from_a_list():
    names = "sgd_tenth, hf_m12,adam(lr=1e-4, betas=(0.8, 0.9)) ,sgd(momentum=0.9, lr=0.1, schedule=plateau)"
    tenth, hf, adam, momentum = parse_strategies(names, TOY, 60)
    assert tenth is SGD_TENTH
    assert hf == HF("hf_m12", 12, 12, 15)
    assert isinstance(adam, FirstOrder)
    assert (adam.optimizer, adam.lr, adam.options) == (torch.optim.Adam, 1e-4, {"betas": (0.8, 0.9)})
    assert momentum.schedule is SGD_PLATEAU.schedule
    assert momentum.options == {"momentum": 0.9}
    # A name is one that reads back as the same strategy.
    assert find_strategy(adam.name, TOY, 60) == adam


def test_optimizers_of_the_other_package_have_names_too():
    pytest.importorskip("pytorch_optimizer")
    model, twin = twins()
    strategy = find_strategy("lion(lr=0.001)", TOY, 60)
    assert strategy.settings()["optimizer"].startswith("pytorch_optimizer.")
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


def test_settings_tell_strategies_apart():
    all_settings = [str(s.settings()) for s in (*default_strategies(TOY, 50_000), SWA(every=3), hf_equal(TOY))]
    assert len(set(all_settings)) == len(all_settings)
