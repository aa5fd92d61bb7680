"""The deep autoencoder 784-1000-500-250-30 on MNIST, with logistic units and with ReLUs.

With logistic units it is the one of Hinton and Salakhutdinov 2006, on which Martens 2010 showed what Hessian-free
optimization can do. With ReLUs it is the one of Goldfarb, Ren and Bahamou 2020 (K-BFGS).
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from latephase.study.data import mnist_images
from latephase.study.problems.initialise import initialise
from latephase.study.problems.problem import Metric, Problem

WIDTHS = 784, 1000, 500, 250, 30
"""From the image to the code; from there back."""


def autoencoder(unit: type[nn.Module]) -> nn.Module:
    """Return the network: inputs [N, 784], outputs the logits of intensities, [N, 784]; 2,837,314 parameters.

    The code is linear. Weights are Xavier-uniform, biases 0.
    """
    there, back = _layers(WIDTHS, unit), _layers(WIDTHS[::-1], unit)
    return initialise(nn.Sequential(*there[:-1], *back[:-1]))


def _layers(widths: tuple[int, ...], unit: type[nn.Module]) -> list[nn.Module]:
    return [layer for into, out in pairwise(widths) for layer in (nn.Linear(into, out), unit())]


def cross_entropy_of_image(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy, summed over an image's pixels, mean over images."""
    return binary_cross_entropy_with_logits(outputs, targets, reduction="sum") / len(targets)


def squared_error(outputs: Tensor, targets: Tensor) -> float:
    """Return the squared error of the intensities, summed over an image's pixels, mean over images."""
    return (outputs.sigmoid() - targets).square().sum(dim=1).mean().item()


def _problem(name: str, unit: type[nn.Module], weight_decay: float, lr: float, source: str) -> Problem:
    return Problem(
        name=name,
        build_model=lambda: autoencoder(unit),
        load_data=mnist_images,
        lr=lr,
        batch_size=1000,
        epochs=50,
        weight_decay=weight_decay,
        curvature_batch=2000,
        gradient_batch=20_000,
        evaluation_batch=4000,
        source=source,
        first_phase="adam(lr=0.001)",
        loss=cross_entropy_of_image,
        metric=Metric("squared error", squared_error, higher_is_better=False),
    )


MNIST_AUTOENCODER = _problem(
    "mnist_autoencoder", nn.Sigmoid, 2e-5, 0.01, "Hinton and Salakhutdinov 2006; Martens 2010; first phase: chosen here"
)
MNIST_AUTOENCODER_RELU = _problem(
    "mnist_autoencoder_relu", nn.ReLU, 1e-5, 0.001, "Goldfarb et al. 2020 (K-BFGS); first phase: chosen here"
)
