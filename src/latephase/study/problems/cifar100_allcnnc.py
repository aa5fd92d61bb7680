"""All-CNN-C on CIFAR-100 (Springenberg et al. 2015, as in DeepOBS)."""

from torch import nn

from latephase.study.data import cifar100
from latephase.study.problems.initialise import initialise
from latephase.study.problems.problem import Problem
from latephase.study.problems.same_padding import SameConv2d


def build_model() -> nn.Module:
    """Return the network: inputs [N, 3, 32, 32], outputs [N, 100], 1,387,108 parameters."""
    model = nn.Sequential(
        nn.Dropout(0.2),
        SameConv2d(3, 96, 3),
        nn.ReLU(),
        SameConv2d(96, 96, 3),
        nn.ReLU(),
        SameConv2d(96, 96, 3, stride=2),
        nn.ReLU(),
        nn.Dropout(0.5),
        SameConv2d(96, 192, 3),
        nn.ReLU(),
        SameConv2d(192, 192, 3),
        nn.ReLU(),
        SameConv2d(192, 192, 3, stride=2),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(192, 192, 3),
        nn.ReLU(),
        nn.Conv2d(192, 192, 1),
        nn.ReLU(),
        nn.Conv2d(192, 100, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return initialise(model, bias=0.1)


CIFAR100_ALLCNNC = Problem(
    name="cifar100_allcnnc",
    build_model=build_model,
    load_data=cifar100,
    lr=0.171234,
    batch_size=256,
    epochs=350,
    weight_decay=5e-4,
    curvature_batch=2048,
    gradient_batch=20000,
    evaluation_batch=4096,
    source="DeepOBS (Schneider et al. 2019); learning rate, batch size and epochs: Tatzel et al. 2022, Table 1",
)
