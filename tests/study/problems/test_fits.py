"""The problems of fitting data: an autoencoder, a table, a potential."""

import math
import struct
from dataclasses import replace

import pytest
import torch
from tests.study.data.hub_files import write_copy
from tests.study.toy import silent
from torch import nn

from latephase.curvature import ggn
from latephase.study.data import Data, DataError
from latephase.study.data.image_sets import MNIST
from latephase.study.problems import PROBLEMS, friedman1, mnist_autoencoder, morse_cluster
from latephase.study.runs.training import train
from latephase.study.strategies.catalogue import find_strategy

NAMES = ["mnist_autoencoder", "mnist_autoencoder_relu", "friedman1", "morse_cluster"]


@pytest.fixture
def mnist(tmp_path):
    """MNIST's four files, with few images."""
    generator = torch.Generator().manual_seed(0)
    for prefix, n in (("train", 40), ("t10k", 10)):
        images = torch.randint(0, 256, (n, 28, 28), generator=generator, dtype=torch.uint8)
        images[images < 200] = 0
        for kind, array in (("images-idx3", images), ("labels-idx1", images[:, 0, 0] % 10)):
            header = struct.pack(">BBBB", 0, 0, 8, array.dim()) + struct.pack(f">{array.dim()}I", *array.shape)
            (tmp_path / f"{prefix}-{kind}-ubyte").write_bytes(header + bytes(array.flatten().tolist()))
    return tmp_path


def few(problem, folder):
    """The problem with few examples and steps, and its data."""
    data = problem.load_data(folder)
    problem = replace(problem, batch_size=20, epochs=3, curvature_batch=20, gradient_batch=40, evaluation_batch=20)
    return problem, Data(data.train.take(slice(40)), data.test.take(slice(10)))


@pytest.mark.parametrize("name", NAMES)
def test_the_first_phase_lowers_the_loss(name, mnist):
    problem, data = few(PROBLEMS[name], mnist)
    curve = train(problem, data, epochs=3, seed=0, progress=silent, keep=lambda *_: None)
    assert curve[-1].train_loss < curve[0].train_loss
    assert math.isfinite(curve[-1].test_metric)
    assert not problem.metric.higher_is_better


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strategy", ["sgd_constant", "hf_large(cg_max_iter=5)", "lbfgs"])
def test_strategies_lower_it_further(name, strategy, mnist):
    problem, data = few(PROBLEMS[name], mnist)
    torch.manual_seed(0)
    model = problem.build_model()
    trainer = find_strategy(strategy, problem, 40).start(problem, model, data, torch.Generator().manual_seed(0))

    def loss():
        with torch.no_grad():
            return problem.loss(model(data.train.inputs), data.train.targets).item() + problem.l2_term(model)

    before = loss()
    for _ in range(2):
        trainer.step(0.0)
    assert loss() < before


@pytest.mark.parametrize("name", NAMES)
def test_products_are_the_fast_ones(name, mnist):
    problem, data = few(PROBLEMS[name], mnist)
    torch.manual_seed(0)
    model, batch = problem.build_model(), data.train.take(slice(5))

    def forward():
        outputs = model(batch.inputs)
        return problem.loss(outputs, batch.targets), outputs

    operator = ggn(forward, list(model.parameters()))
    first = next(model.parameters())
    operator @ torch.ones(sum(p.numel() for p in model.parameters()), dtype=first.dtype)
    assert operator.backend == "linearize"


# ---------------------------------------------------------------------- the autoencoder


@pytest.mark.parametrize(("name", "unit"), [("mnist_autoencoder", nn.Sigmoid), ("mnist_autoencoder_relu", nn.ReLU)])
def test_the_autoencoder(name, unit, mnist):
    problem = PROBLEMS[name]
    model, data = problem.build_model(), problem.load_data(mnist)
    assert isinstance(model, nn.Sequential)
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == [1000, 500, 250, 30, 250, 500, 1000, 784]
    assert sum(p.numel() for p in model.parameters()) == 2_837_314
    assert [type(layer) for layer in model if not isinstance(layer, nn.Linear)] == [unit] * 6  # none for the code
    assert isinstance(model[7], nn.Linear)
    assert data.train.inputs.shape == (40, 784)
    assert torch.equal(data.train.inputs, data.train.targets)
    assert data.train.inputs.min() == 0
    assert len(data.test) == 10
    assert 200 / 255 < data.train.inputs.max() <= 1


def test_the_loss_of_the_autoencoder_is_a_sum_over_pixels():
    torch.manual_seed(0)
    logits, images = torch.randn(3, 784).double(), torch.rand(3, 784).double()
    p = torch.sigmoid(logits)
    expected = -(images * p.log() + (1 - images) * (1 - p).log()).sum(dim=1).mean()
    torch.testing.assert_close(mnist_autoencoder.cross_entropy_of_image(logits, images), expected)
    assert mnist_autoencoder.squared_error(logits, p) == 0
    assert mnist_autoencoder.squared_error(logits, p + 0.1) == pytest.approx(7.84)


def test_the_autoencoder_reads_a_copy_of_the_hubs_repository_too(tmp_path):
    examples = write_copy(MNIST, tmp_path, n_train=8, n_test=4)
    data = PROBLEMS["mnist_autoencoder"].load_data(tmp_path)
    for split, name in ((data.train, "train"), (data.test, "test")):
        pixels = torch.tensor(examples[name][0]).flatten(1) / 255
        torch.testing.assert_close(split.inputs, pixels)
        assert torch.equal(split.inputs, split.targets)


def test_a_folder_without_mnist_is_named(tmp_path):
    with pytest.raises(
        DataError, match=f"{tmp_path.name}: no MNIST there, expected its four IDX files, .*ylecun/mnist"
    ):
        PROBLEMS["mnist_autoencoder"].load_data(tmp_path)


# ---------------------------------------------------------------------- the table


def test_the_table_is_friedmans_function_and_noise():
    data = friedman1.load_data()
    assert (len(data.train), len(data.test)) == (8000, 2000)
    x = (data.train.inputs + 1) / 2
    assert (x.min() >= 0) & (x.max() <= 1)
    y = 10 * torch.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    noise = data.train.targets - y[:, None]
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert friedman1.root_mean_square(y[:, None], data.train.targets) == pytest.approx(1, abs=0.05)
    assert friedman1.half_mean_square(y[:, None] + 2, y[:, None]).item() == pytest.approx(2)
    assert torch.equal(friedman1.load_data().test.targets, data.test.targets)
    assert sum(p.numel() for p in friedman1.build_model().parameters()) == 4929


# ---------------------------------------------------------------------- the potential


def test_morse_energies_and_forces_pair_by_pair():
    positions = morse_cluster.load_data().train.inputs[:3]
    for cluster, row in zip(positions, morse_cluster.morse(positions), strict=True):
        x = cluster.clone().requires_grad_()
        energy = x.new_zeros(())
        for i in range(8):
            for j in range(i):
                energy = energy + (1 - torch.exp(-3 * ((x[i] - x[j]).norm() - 1))) ** 2 - 1
        (slopes,) = torch.autograd.grad(energy, x)
        torch.testing.assert_close(row[0], energy.detach() / 8)
        torch.testing.assert_close(row[1:], -slopes.flatten())


def test_forces_of_the_network_are_the_derivatives_of_its_energy():
    torch.manual_seed(0)
    model = morse_cluster.build_model()
    positions = morse_cluster.load_data().train.inputs[:4].clone().requires_grad_()
    rows = model(positions)
    (slopes,) = torch.autograd.grad(8 * rows[:, 0].sum(), positions, retain_graph=True)
    torch.testing.assert_close(rows[:, 1:], -slopes.flatten(1))
    assert sum(p.numel() for p in model.parameters()) == 1633


def test_the_network_does_not_see_where_a_cluster_is_nor_how_it_is_turned_or_numbered():
    torch.manual_seed(0)
    model = morse_cluster.build_model()
    positions = morse_cluster.load_data().train.inputs[:4]
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    order = torch.randperm(8)
    rows, moved = model(positions), model((positions @ turn + 3.0)[:, order])
    torch.testing.assert_close(moved[:, 0], rows[:, 0])
    forces = (rows[:, 1:].unflatten(1, (8, 3)) @ turn)[:, order]
    torch.testing.assert_close(moved[:, 1:].unflatten(1, (8, 3)), forces)


def test_the_loss_and_the_metric_of_the_potential():
    data = morse_cluster.load_data()
    assert data.train.inputs.shape == (500, 8, 3)
    assert data.train.targets.shape == (500, 25)
    off = data.train.targets.clone()
    off[:, 0] += 2
    off[:, 1:] += 3
    assert morse_cluster.energies_and_forces(off, data.train.targets).item() == pytest.approx(0.5 * (4 + 9))
    assert morse_cluster.relative_force_error(data.train.targets, data.train.targets) == 0
    assert morse_cluster.relative_force_error(1.1 * data.train.targets, data.train.targets) == pytest.approx(0.1)
    assert torch.equal(morse_cluster.load_data().test.inputs, data.test.inputs)
