"""A narrow All-CNN on Fashion-MNIST: 60,000 real images, for machines without a GPU."""

import torch
from torch import nn

from latephase.study.data import fashion_mnist
from latephase.study.problems.all_convolutional import all_convolutional
from latephase.study.problems.problem import Problem


def build_model() -> nn.Module:
    """Return the network: inputs [N, 1, 28, 28], outputs [N, 10]; 38,570 parameters.

    All-CNN-C (Springenberg et al. 2015) at a sixth of its width, with one more stride and without dropout. With it, so
    narrow a network trained to losses between 0.4 and 0.8 from one moment to the next.
    """
    model = all_convolutional(
        nn.Conv2d(1, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.Conv2d(32, 32, 3),
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(32, 10, 1),
    )
    # The layout that convolutions on a CPU work in. (PyTorch's own types do not know this form.)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


FMNIST_ALLCNN = Problem(
    name="fmnist_allcnn",
    build_model=build_model,
    load_data=fashion_mnist,
    lr=0.1,
    batch_size=128,
    epochs=100,
    weight_decay=5e-4,
    curvature_batch=2048,
    gradient_batch=20000,
    evaluation_batch=4096,
    source="data: Fashion-MNIST (Xiao et al. 2017); network after Springenberg et al. 2015; settings: chosen here",
)
