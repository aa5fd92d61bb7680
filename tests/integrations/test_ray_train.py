"""The recipe of docs/scale.md for Ray Train: two workers step as one process does on all samples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from latephase import HessianFree

ray = pytest.importorskip("ray")

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^## Ray Train\n.*?```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def _cluster() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("_cluster")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray itself
def test_two_workers_step_as_one_process_does(tmp_path: Path) -> None:
    (code,) = BLOCKS
    x = torch.randn(64, 4)
    y = (x[:, :1] * x[:, 1:2]).sin()
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    folder = tmp_path / "state"
    folder.mkdir()
    given: dict[str, Any] = {
        "x": x, "y": y, "trained": network.state_dict(), "folder": str(folder), "storage": str(tmp_path / "runs"),
    }  # fmt: skip
    exec(compile(code, "scale.md, Ray Train", "exec"), given)
    opt = HessianFree(network.parameters())
    for _ in range(3):
        loss = opt.acc_step(network, nn.functional.mse_loss, [(x, y)])
    assert given["result"].metrics["loss"] == pytest.approx(loss, rel=1e-4)
    with given["result"].checkpoint.as_directory() as checkpoint:
        saved = torch.load(Path(checkpoint) / "state.pt")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(saved["model"][name], value, rtol=1e-3, atol=1e-4)
    assert saved["opt"]["param_groups"][0]["damping"] == opt.param_groups[0]["damping"]
