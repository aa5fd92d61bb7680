"""Programs that several processes run together, joined by a gloo group."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 240.0  # seconds after which ranks are taken to hang


class DiedError(Exception):
    """A rank left no result."""


def together(count: int, folder: Path, program: Callable[..., Any], *arguments: object) -> list[Any]:
    """Return what `program(rank, *arguments)` returns on each of so many ranks; a `DiedError` where it does not.

    Args:
        count: How many processes.
        folder: Empty, for their meeting and their results.
        program: A function of a module's top level.
        arguments: What pickles.

    Raises:
        TimeoutError: If they do not end.
    """
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_run, args=(rank, count, folder, program, arguments)) for rank in range(count)]
    for process in ranks:
        process.start()
    end = time.monotonic() + PATIENCE
    for process in ranks:
        process.join(max(end - time.monotonic(), 0.0))
    hanging = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for process in ranks:
        process.kill()
    if hanging:
        raise TimeoutError(f"ranks {hanging} hang")
    return [_result(folder / f"{rank}.pickle", process.exitcode) for rank, process in enumerate(ranks)]


def _result(file: Path, code: int | None) -> Any:
    return pickle.loads(file.read_bytes()) if file.exists() else DiedError(f"exit code {code}")


def _run(rank: int, count: int, folder: Path, program: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in places.items()})  # as torchrun does, for frameworks
    os.environ["TORCHELASTIC_RUN_ID"] = "tests"
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=count)
    result = program(rank, *arguments)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(result))
    with suppress(RuntimeError):  # one may have died
        dist.barrier()  # none leaves while another needs it
    dist.destroy_process_group()
