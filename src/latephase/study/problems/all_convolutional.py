"""Networks of convolutions and nothing else, after All-CNN (Springenberg et al. 2015)."""

from torch import nn

from latephase.study.problems.initialise import initialise


def all_convolutional(*convolutions: nn.Conv2d) -> nn.Sequential:
    """Return the convolutions with ReLU between them and the mean over the image at the end.

    The last one has as many channels as there are classes. Weights are Xavier-normal, biases zero.
    """
    layers: list[nn.Module] = []
    for convolution in convolutions:
        layers += [convolution, nn.ReLU()]
    return initialise(nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten()))
