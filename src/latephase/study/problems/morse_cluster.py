"""A small machine-learned potential: energies and forces of clusters of eight atoms, learned from Morse's potential.

Atoms sit near the corners of a cube. Every pair at distance r has the energy (1 − exp(−a (r − 1)))² − 1 with a = 3. The
network has to find that from the energies of whole clusters and the forces on their atoms.
"""

from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from latephase.study.data import Data, Split
from latephase.study.problems.initialise import initialise
from latephase.study.problems.problem import Metric, Problem
from latephase.study.problems.tanh_network import TanhNetwork

ATOMS, STIFFNESS = 8, 3.0
TRAIN, TEST = 500, 500
CENTRES, WIDTH = 16, 0.15
"""Gaussians of the distance in an atom's description, and their width; centres are from 0.6 to 2.4."""


class Pairs:
    """The distances in clusters at `positions`, [N, A, 3].

    Attributes:
        distances: [N, A, A], with 1 for an atom and itself.
        directions: Unit vectors to an atom from each other, [N, A, A, 3], with 0 for an atom and itself.
        others: 1 for two atoms, 0 for an atom and itself, [A, A].
    """

    def __init__(self, positions: Tensor) -> None:
        steps = positions[:, :, None] - positions[:, None]
        self.others = 1 - torch.eye(positions.shape[1]).to(positions)
        self.distances = (steps.square().sum(dim=3) + 1 - self.others).sqrt()
        self.directions = steps / self.distances[..., None]


class Potential(nn.Module):
    """Energy and forces, from a network that maps an atom's surroundings to its share of the energy.

    An atom is described by sums of Gaussians over its distances to the others (Behler and Parrinello 2007). Forces are
    the exact derivatives of the energy: those of the network by its inputs are written out, layer by layer, so that
    nothing differentiates inside the forward pass, and whatever differentiates the network works here, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = TanhNetwork(CENTRES, 32, 32)

    def forward(self, positions: Tensor) -> Tensor:
        """Map [N, A, 3] to rows (energy per atom, 3A forces), [N, 1 + 3A]."""
        pairs = Pairs(positions)
        away = (pairs.distances[..., None] - torch.linspace(0.6, 2.4, CENTRES).to(positions)) / WIDTH
        gaussians = torch.exp(-0.5 * away.square()) * pairs.others[..., None]
        shares, slopes = self.network.value_and_slopes(gaussians.sum(dim=2).flatten(0, 1))
        # ∂E/∂rᵢⱼ has a part from each of the two atoms.
        pull = torch.einsum("nik,nijk->nij", slopes.unflatten(0, positions.shape[:2]), -away / WIDTH * gaussians)
        forces = -((pull + pull.transpose(1, 2))[..., None] * pairs.directions).sum(dim=2)
        return torch.cat([shares.view(positions.shape[:2]).mean(dim=1, keepdim=True), forces.flatten(1)], dim=1)


def morse(positions: Tensor) -> Tensor:
    """Return the true energies per atom and forces, as `Potential` does."""
    pairs = Pairs(positions)
    decay = torch.exp(-STIFFNESS * (pairs.distances - 1))
    energy = 0.5 * (((1 - decay).square() - 1) * pairs.others).sum(dim=(1, 2)) / positions.shape[1]
    pull = 2 * STIFFNESS * decay * (1 - decay) * pairs.others
    forces = -(pull[..., None] * pairs.directions).sum(dim=2)
    return torch.cat([energy[:, None], forces.flatten(1)], dim=1)


def build_model() -> nn.Module:
    """Return the network, 1,633 parameters in float64: Xavier-uniform weights, zero biases."""
    return initialise(Potential()).double()


def load_data(folder: Path | None = None) -> Data:
    """Return clusters, always the same: a cube of side 1.05, each atom moved by normal numbers of deviation 0.1."""
    generator = torch.Generator().manual_seed(0)
    cube = 1.05 * torch.tensor(list(product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    moves = torch.randn(TRAIN + TEST, ATOMS, 3, generator=generator, dtype=torch.float64)
    positions = cube + 0.1 * moves
    clusters = Split(positions, morse(positions))
    return Data(clusters.take(slice(TRAIN)), clusters.take(slice(TRAIN, None)))


def energies_and_forces(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return half the mean squared error of the energies per atom plus half that of the forces."""
    squares = (outputs - targets).square()
    return 0.5 * (squares[:, 0].mean() + squares[:, 1:].mean())


def relative_force_error(outputs: Tensor, targets: Tensor) -> float:
    """Return ‖F − F*‖ / ‖F*‖ over all forces."""
    return ((outputs - targets)[:, 1:].norm() / targets[:, 1:].norm()).item()


MORSE_CLUSTER = Problem(
    name="morse_cluster",
    build_model=build_model,
    load_data=load_data,
    lr=0.01,
    batch_size=50,
    epochs=200,
    weight_decay=0.0,
    curvature_batch=200,
    gradient_batch=TRAIN,
    evaluation_batch=100,
    source="data: Morse 1929, clusters drawn here; network after Behler and Parrinello 2007; settings: chosen here",
    cpu_threads=1,  # the tensors are too small to gain from more
    first_phase="adam(lr=0.001)",
    loss=energies_and_forces,
    metric=Metric("relative error of forces", relative_force_error, higher_is_better=False),
)
