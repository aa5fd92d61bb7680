"""What a run was made on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def describe_machine(device: torch.device) -> dict[str, str]:
    """Return the machine and the versions of what a result depends on."""
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "latephase": version("latephase"),
        "system": platform.system(),
    }


def processor() -> str:
    """Return the processor's name."""
    names = Path("/proc/cpuinfo")
    if names.is_file():
        for line in names.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
