"""3C3D on CIFAR-10: three convolutions, three dense layers (DeepOBS, Schneider et al. 2019)."""

from torch import nn

from latephase.study.problems.same_padding import SameConv2d, halving_max_pool


def build_model() -> nn.Module:
    """Return the network: inputs [N, 3, 32, 32], outputs [N, 10], 895,210 parameters."""
    model = nn.Sequential(
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
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_normal_(layer.weight)
        elif isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model
