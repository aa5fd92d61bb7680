"""What the measurements ran on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from latephase.study.runs.machine import processor

PACKAGES = ("torch", "latephase", "backpack-for-pytorch", "curvlinops-for-pytorch")


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Return processor, cores, device and versions."""
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
