"""On a GPU the same as on the CPU: products, steps of all solvers, a finish, the study's strategies and its clock.

Skipped where there is none.
"""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from latephase import HessianFree, amenability, finish
from latephase.curvature import ggn, hessian
from latephase.study.problems.digits_cnn import DIGITS_CNN
from latephase.study.runs.budget import Allowance
from latephase.study.runs.runner import resume
from latephase.study.strategies.catalogue import find_strategy
from tests.study.toy import TOY, build_model, load_data, silent

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def exact():
    """No products in which factors are rounded to ten bits."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def classifier(device, dtype=torch.float64, norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(600, 1, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(5, (600,), generator=generator)
    return model.to(device, dtype), x.to(device, dtype), y.to(device)


def sample_by_sample(device):
    return classifier(device, norm=nn.Identity)


def regression(device, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.rand(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return model.to(device, dtype), x.to(device, dtype), x.prod(dim=1, keepdim=True).to(device, dtype)


def flat(model):
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


@pytest.mark.parametrize("make", [ggn, hessian])
def test_products_are_those_of_the_cpu(make):
    products = []
    for device in (CPU, GPU):
        model, x, y = classifier(device)

        def forward(model=model, x=x, y=y):
            outputs = model(x)
            return cross_entropy(outputs, y), outputs

        v = torch.randn(len(flat(model)), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        products.append((make(forward, model.parameters()) @ v.to(device)).cpu())
    torch.testing.assert_close(products[1], products[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("make", "loss"), [(sample_by_sample, cross_entropy), (regression, mse_loss)])
@pytest.mark.parametrize("solver", ["cg", "krylov", "direct", "sampled", "quasi-newton", "auto"])
def test_steps_are_those_of_the_cpu(solver, make, loss):
    ends = []
    for device in (CPU, GPU):
        model, x, y = make(device)
        opt = HessianFree(model.parameters(), solver=solver)

        def forward(model=model, x=x, y=y):
            outputs = model(x)
            return loss(outputs, y), outputs

        before = forward()[0].item()
        opt.step(forward)  # one: later ones multiply what rounding makes different
        assert forward()[0].item() < before
        ends.append(flat(model))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_in_other_types_and_with_the_cards_own_rounding(dtype):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    model, x, y = classifier(GPU, torch.float32)
    opt = HessianFree(model.parameters())

    def forward():
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not torch.float32):
            outputs = model(x)
            return cross_entropy(outputs, y), outputs

    losses = [float(opt.step(forward)) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_micro_batches_and_a_state_that_goes_on():
    model, x, y = classifier(GPU)
    opt = HessianFree(model.parameters())
    parts = [(x[:300], y[:300]), (x[300:], y[300:])]
    before = cross_entropy(model(x), y).item()
    opt.acc_step(model, cross_entropy, parts, parts, parts)
    saved = opt.state_dict()
    again = HessianFree(model.parameters())
    again.load_state_dict(saved)
    again.acc_step(model, cross_entropy, parts, parts, parts)
    assert cross_entropy(model(x), y).item() < before


def test_a_finish_and_whether_it_is_worth_one():
    model, x, y = regression(GPU, torch.float32)
    report = finish(model, nn.MSELoss(), (x, y), budget="2000gradients", batch_size=50, progress=False)
    assert report.score < 0.1 * report.score_before
    model, x, y = regression(GPU, torch.float32)
    report = finish(model, nn.MSELoss(), (x, y), budget=5.0, batch_size=10, progress=False)
    assert report.score < 0.1 * report.score_before
    assert amenability(model, nn.MSELoss(), (x, y)).price > 0


@pytest.mark.parametrize("name", ["sgd_cosine", "swa", "adam_cosine", "muon_cosine", "lbfgs", "scipy_lbfgs",
                                  "hf_m256", "hf_same_batch", "hf_auto", "finish"])  # fmt: skip
def test_the_studys_strategies_on_its_clock(name):
    data = DIGITS_CNN.load_data(None).to(GPU)
    torch.manual_seed(0)
    state = DIGITS_CNN.build_model().state_dict()
    strategy = find_strategy(name, DIGITS_CNN, len(data.train))
    run = resume(
        DIGITS_CNN, data, state, strategy, allowance=Allowance(4.0, "seconds"), seed=0, progress=silent
    )  # fmt: skip
    assert run.curve[-1].train_loss < run.curve[0].train_loss


def test_runs_of_one_seed_are_equal_on_the_device():
    data = load_data().to(GPU)
    torch.manual_seed(0)
    state = build_model().state_dict()
    strategy = find_strategy("finish", TOY, len(data.train))
    one, other = (
        resume(TOY, data, state, strategy, allowance=Allowance(200.0, "gradients"), seed=0, progress=silent)
        for _ in range(2)
    )
    assert [point.train_loss for point in one.curve] == [point.train_loss for point in other.curve]
