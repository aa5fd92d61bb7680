"""Wide ResNet 16-4 on SVHN (Zagoruyko and Komodakis 2016, as in DeepOBS)."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import relu

from latephase.study.data import svhn
from latephase.study.problems.initialise import initialise
from latephase.study.problems.problem import Problem
from latephase.study.problems.same_padding import SameConv2d

BN_MOMENTUM = 0.9  # DeepOBS's PyTorch version: running statistics are mostly those of the last batch.


class ResidualBlock(nn.Module):
    """BatchNorm, ReLU and a 3×3 convolution, twice, added to the block's input after its first ReLU.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output. Where they differ, a 1×1 convolution brings the input to them.
        stride: Of the first convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in, momentum=BN_MOMENTUM)
        self.conv1 = SameConv2d(channels_in, channels_out, 3, stride=stride, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out, momentum=BN_MOMENTUM)
        self.conv2 = SameConv2d(channels_out, channels_out, 3, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.shortcut = SameConv2d(channels_in, channels_out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels_in, H, W] to [N, channels_out, H / stride, W / stride]."""
        x = relu(self.norm1(x))
        return self.conv2(relu(self.norm2(self.conv1(x)))) + self.shortcut(x)


def build_model() -> nn.Module:
    """Return the network: inputs [N, 3, 32, 32], outputs [N, 10], 2,748,890 parameters."""
    channels = (16, 64, 128, 256)
    blocks: list[nn.Module] = []
    for (channels_in, channels_out), stride in zip(pairwise(channels), (1, 2, 2), strict=True):
        blocks += [ResidualBlock(channels_in, channels_out, stride), ResidualBlock(channels_out, channels_out)]
    model = nn.Sequential(
        SameConv2d(3, channels[0], 3, bias=False),
        *blocks,
        nn.BatchNorm2d(channels[-1], momentum=BN_MOMENTUM),
        nn.ReLU(),
        nn.AvgPool2d(8),
        nn.Flatten(),
        nn.Linear(channels[-1], 10),
    )
    return initialise(model, convolution=nn.init.xavier_uniform_)


SVHN_WRN164 = Problem(
    name="svhn_wrn164",
    build_model=build_model,
    load_data=svhn,
    lr=0.025378,
    batch_size=128,  # of the benchmark from which the paper takes its settings (Schmidt et al. 2021)
    epochs=160,
    weight_decay=5e-4,
    curvature_batch=2048,
    gradient_batch=20000,
    evaluation_batch=4096,
    source="DeepOBS (Schneider et al. 2019); learning rate and epochs: Tatzel et al. 2022, Table 1",
)
