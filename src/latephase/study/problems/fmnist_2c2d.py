"""2C2D on Fashion-MNIST: two convolutions, two dense layers (DeepOBS, Schneider et al. 2019)."""

from functools import partial

from torch import nn

from latephase.study.data import fashion_mnist
from latephase.study.problems.initialise import initialise
from latephase.study.problems.problem import Problem


def build_model() -> nn.Module:
    """Return the network: inputs [N, 1, 28, 28], outputs [N, 10]; 3,274,634 parameters."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    )
    # TensorFlow's truncated normal distribution ends at two standard deviations.
    draw = partial(nn.init.trunc_normal_, std=0.05, a=-0.1, b=0.1)
    return initialise(model, convolution=draw, dense=draw, bias=0.05)


FMNIST_2C2D = Problem(
    name="fmnist_2c2d",
    build_model=build_model,
    load_data=fashion_mnist,
    lr=0.158489,  # 10 ** -0.8, which DeepOBS's published baselines found best for SGD on a grid of 36
    batch_size=128,
    epochs=100,
    weight_decay=0.0,
    curvature_batch=2048,
    gradient_batch=20000,
    evaluation_batch=4096,
    source="DeepOBS (Schneider et al. 2019), with the learning rate of its SGD baseline",
)
