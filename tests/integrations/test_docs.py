"""The blocks of docs/frameworks.md run as they stand, with small networks and data in the names that they use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L  # noqa: N812
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from tests.integrations.test_transformers import language_model, texts
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

PAGE = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^## (\w+)\n\n```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


class Module(L.LightningModule):
    """A small one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@pytest.fixture(autouse=True)
def _accelerate_begins_anew() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def test_there_are_blocks() -> None:
    assert [name for name, _ in BLOCKS] == ["Lightning", "transformers", "Accelerate", "skorch"]


@pytest.mark.parametrize(("name", "code"), BLOCKS)
def test_blocks_run(name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = torch.randn(64, 4)
    y = (x[:, :1] * x[:, 1:2]).sin()
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    before = [p.detach().clone() for p in network.parameters()]
    model = language_model()
    there_before = [p.detach().clone() for p in model.parameters()]
    given = {
        "module": Module(network), "network": network, "loader": DataLoader(TensorDataset(x, y), batch_size=32),
        "loss_func": nn.functional.mse_loss, "folder": str(tmp_path), "language_model": model, "texts": texts(),
        "x": x.numpy(), "y": y.numpy(),
    }  # fmt: skip
    exec(compile(code, f"frameworks.md, {name}", "exec"), given)
    if name == "skorch":
        net: Any = given["net"]
        losses = net.history[:, "train_loss"]
        assert losses[-1] < losses[0]
        return
    trained, start = (model, there_before) if name == "transformers" else (network, before)
    assert not any(torch.equal(p, q) for p, q in zip(trained.parameters(), start, strict=True))
