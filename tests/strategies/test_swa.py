"""Stochastic weight averaging: what is judged is the mean of the iterates."""

import torch
from tests.study.strategies.twins import assert_same, generator, twins
from tests.study.toy import TOY, build_model, load_data

from latephase.strategies.first_order import SGD_CONSTANT
from latephase.strategies.swa import SWA
from latephase.study.runs.evaluation import evaluate


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
