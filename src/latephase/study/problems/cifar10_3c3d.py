"""3C3D on CIFAR-10: three convolutions, three dense layers (DeepOBS, Schneider et al. 2019)."""

from torch import nn

from latephase.study.data import cifar10
from latephase.study.problems.initialise import initialise
from latephase.study.problems.problem import Problem
from latephase.study.problems.same_padding import SameConv2d, halving_max_pool


def build_model() -> nn.Module:
    """Return the network: inputs [N, 3, 32, 32], outputs [N, 10], 895,210 parameters."""
    return initialise(
        nn.Sequential(
            nn.Conv2d(3, 64, 5),
            nn.ReLU(),
            halving_max_pool(),
            nn.Conv2d(64, 96, 3),
            nn.ReLU(),
            halving_max_pool(),
            SameConv2d(96, 128, 3),
            nn.ReLU(),
            halving_max_pool(),
            nn.Flatten(),
            nn.Linear(128 * 3 * 3, 512),
            nn.ReLU(),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Linear(256, 10),
        )
    )


CIFAR10_3C3D = Problem(
    name="cifar10_3c3d",
    build_model=build_model,
    load_data=cifar10,
    lr=0.067966,
    batch_size=128,  # of the benchmark from which the paper takes its settings (Schmidt et al. 2021)
    epochs=100,
    weight_decay=0.002,
    curvature_batch=2048,
    gradient_batch=20000,
    evaluation_batch=4096,
    source="DeepOBS (Schneider et al. 2019); learning rate and epochs: Tatzel et al. 2022, Table 1",
)
