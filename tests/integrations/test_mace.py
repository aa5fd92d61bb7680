"""Steps on MACE's model of interatomic potentials: TorchScript inside, and forces that are derivatives of energies."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from latephase import HessianFree

pytestmark = [
    pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support instance-level annotations"),
    pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated"),
]


@pytest.fixture(scope="module")
def mace() -> Iterator[Any]:
    """The package; what it depends on warns when it is imported, and loads a file with slices in it."""
    torch.serialization.add_safe_globals([slice])
    with warnings.catch_warnings(), patch.dict(os.environ):  # to which it adds
        warnings.simplefilter("ignore")
        import mace
        from mace import data, modules  # noqa: F401 — attributes of the package then
        from mace.tools.torch_geometric import dataloader  # noqa: F401
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield mace
    torch.set_default_dtype(before)


def molecules(mace: Any) -> Any:
    """A batch of six distorted water molecules, with energies and forces."""
    rng, table = np.random.default_rng(0), mace.tools.AtomicNumberTable([1, 8])
    places = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    graphs = []
    for _ in range(6):
        shift = rng.normal(scale=0.05, size=(3, 3))
        known = {"energy": -1.5 + 5.0 * float((shift**2).sum()), "forces": -10.0 * shift}
        one = mace.data.Configuration(
            atomic_numbers=np.array([8, 1, 1]),
            positions=places + shift,
            properties=known,
            property_weights={"energy": 1.0, "forces": 1.0},
        )
        graphs.append(mace.data.AtomicData.from_config(one, z_table=table, cutoff=3.0))
    return next(iter(mace.tools.torch_geometric.dataloader.DataLoader(graphs, batch_size=6, shuffle=False)))


def network(mace: Any) -> torch.nn.Module:
    from e3nn import o3

    torch.manual_seed(0)
    block = mace.modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    return mace.modules.ScaleShiftMACE(
        r_max=3.0, num_bessel=4, num_polynomial_cutoff=3, max_ell=1, interaction_cls=block, interaction_cls_first=block,
        num_interactions=2, num_elements=2, hidden_irreps=o3.Irreps("8x0e"), MLP_irreps=o3.Irreps("8x0e"),
        gate=torch.nn.functional.silu, atomic_energies=np.array([-0.5, -0.5]), avg_num_neighbors=2, correlation=2,
        atomic_numbers=[1, 8], radial_type="bessel", atomic_inter_scale=1.0, atomic_inter_shift=0.0,
    )  # fmt: skip


def test_steps_lower_its_loss_of_energies_and_forces(mace: Any) -> None:
    batch, model = molecules(mace), network(mace)
    loss_of = mace.modules.WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=10.0)
    opt = HessianFree(model.parameters(), damping=0.1)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = loss_of(pred=model(batch.to_dict(), training=True), ref=batch)
        loss.backward()
        return loss

    losses = [opt.step(closure) for _ in range(4)]
    assert opt.last_step is not None
    assert opt.last_step.counts is not None
    assert opt.last_step.counts.linearisations == 0  # fast products
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
