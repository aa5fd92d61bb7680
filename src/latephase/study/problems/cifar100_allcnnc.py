"""All-CNN-C on CIFAR-100 (Springenberg et al. 2015, as in DeepOBS)."""

from torch import nn

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
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_normal_(layer.weight)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.constant_(parameter, 0.1)
    return model
