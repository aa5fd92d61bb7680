"""A folder of runs: one folder for each, named by the identity of its record, complete or not there.

`config.json` says what the run is, `curve.parquet`, `steps.parquet`, `network.pt` and `checkpoints/` hold
what came of it, and `status.json`, written last, says that all is there, with checksums. Every file is written
whole under another name first, so a process that is killed leaves a run that is not complete, and nothing else.
"""

import hashlib
import io
import json
import shutil
import traceback
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import fsspec
import pandas as pd
import torch
from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem

from latephase import StepRecord
from latephase.study.runs.evaluation import Point
from latephase.study.runs.records import Record, Training, from_json, identify
from latephase.study.runs.training import Checkpoint

STEP_COLUMNS = (
    "loss_before", "loss_after", "damping", "reduction_ratio", "cg_iterations", "cg_iterate", "step_size", "outcome",
)  # fmt: skip


class StoreError(RuntimeError):
    """A folder of runs cannot be used. The message names it."""


class MetricDetails(TypedDict):
    """What a problem's metric is, see `Metric`."""

    name: str
    higher_is_better: bool
    percent: bool


class AllowanceDetails(TypedDict):
    """See `Allowance`."""

    amount: float
    unit: str


class Details(TypedDict, total=False):
    """What is known of a run besides its record: of a complete one all but `error`, of another that.

    Only trainings have `metric` and `examples` (how many to train and to test on), only late-phase runs have an
    `allowance`.
    """

    state: str
    machine: dict[str, str]
    metric: MetricDetails
    examples: dict[str, int]
    allowance: AllowanceDetails
    files: dict[str, str]
    error: str
    finished: str


class Status(NamedTuple):
    """What is known of a run.

    Attributes:
        state: `"missing"` (or begun and not finished), `"complete"`, `"failed"` or `"damaged"`.
        record: What the run is; None where that cannot be read.
        details: See there.
    """

    state: str
    record: Record | None
    details: Details


class Store:
    """A folder of runs, at any address that fsspec knows (`path`, `s3://…`, `memory://…`).

    Several processes may work on it. On a local folder a lock keeps them from doing the same run twice; elsewhere they
    may, and the last to finish is the one that stays.

    Args:
        address: The folder; it is made if need be.

    Raises:
        StoreError: If nothing can be written there.

    Example:
        >>> from latephase.study.runs.records import Training
        >>> store = Store("memory://an-example")
        >>> store.prepare()
        >>> settings = 0.05, 32, 400, 5e-4, "sgd_constant", None
        >>> run = store.begin(Training("digits_cnn", "digits_cnn", *settings, seed=0, device="cpu"))
        >>> store.ids() == [run], store.status(run).state
        (True, 'missing')
    """

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        self._files, root = fsspec.core.url_to_fs(self.address)
        self._root = root.rstrip("/")
        self._local = isinstance(self._files, LocalFileSystem)

    def prepare(self, needed: int = 0) -> None:
        """Make the folder, and see now rather than after a training that `needed` bytes can be written to it."""
        probe = f"{self._root}/.probe-{uuid.uuid4().hex}"
        try:
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(probe, b"0")
            self._files.rm_file(probe)
            free = shutil.disk_usage(self._root).free if self._local else needed
        except OSError as error:
            raise StoreError(f"{self.address}: cannot be written to ({error})") from error
        if free < needed:
            raise StoreError(f"{self.address}: {free / 1e6:.0f} MB free, and checkpoints need {needed / 1e6:.0f} MB")

    # ------------------------------------------------------------------ reading

    def ids(self) -> list[str]:
        """Return the names of all runs that have a folder."""
        if not self._files.isdir(self._root):
            return []
        self._files.invalidate_cache()
        names = [path.rstrip("/").rpartition("/")[2] for path in self._files.ls(self._root, detail=False)]
        return sorted(name for name in names if len(name) == 16 and set(name) <= set("0123456789abcdef"))

    def status(self, run: str) -> Status:
        """Return what is known of a run; every file of a complete one is read and held against its checksum."""
        if not self._files.exists(self._path(run, "config.json")):
            return Status("missing", None, {})
        record = None
        try:
            content = self._json(run, "config.json")
            if identify(content) != run:
                return Status("damaged", None, {"error": "config.json is not the one that the folder is named after"})
            record = from_json(content)
            if not self._files.exists(self._path(run, "status.json")):
                return Status("missing", record, {})
            details = self.details(run)
            self._check_files(run, details.get("files", {}))
        except FileNotFoundError as error:
            return Status("damaged", None, {"error": f"{str(error.filename or error).rpartition('/')[2]} is missing"})
        except (OSError, ValueError, KeyError) as error:
            return Status("damaged", record, {"error": str(error)})
        return Status(details["state"], record, details)

    def _check_files(self, run: str, checksums: Mapping[str, str]) -> None:
        for name, checksum in checksums.items():
            if hashlib.sha256(self._read(run, name)).hexdigest() != checksum:
                raise ValueError(f"{name} has changed since it was written")

    def record(self, run: str) -> Record:
        """Return what a run is, without a look at the rest of its folder."""
        return from_json(self._json(run, "config.json"))

    def training(self, run: str) -> Training:
        """Return what a run is that is a training."""
        record = self.record(run)
        if not isinstance(record, Training):
            raise ValueError(f"{run} is no training but {record.title}")
        return record

    def details(self, run: str) -> Details:
        """Return what came of a run, without a look at its files."""
        content: Any = self._json(run, "status.json")
        details: Details = content
        return details

    def examples(self, training: str) -> int:
        """Return how many examples a complete training had to train on."""
        return self.details(training)["examples"]["train"]

    def curve(self, run: str) -> pd.DataFrame:
        """Return a run's points, one row each."""
        return pd.read_parquet(io.BytesIO(self._read(run, "curve.parquet")))

    def steps(self, run: str) -> pd.DataFrame:
        """Return a run's Hessian-free steps, one row each; empty where there are none."""
        if not self._files.exists(self._path(run, "steps.parquet")):
            return pd.DataFrame({"step": [], **{name: [] for name in STEP_COLUMNS}})
        return pd.read_parquet(io.BytesIO(self._read(run, "steps.parquet")))

    def network(self, run: str) -> dict[str, torch.Tensor]:
        """Return the state dict of the network that a late-phase run ended with, on the CPU."""
        return torch.load(io.BytesIO(self._read(run, "network.pt")), map_location="cpu", weights_only=True)

    def checkpoints(self, training: str) -> list[int]:
        """Return the numbers of the checkpoints that a training, finished or not, has written."""
        folder = self._path(training, "checkpoints")
        self._files.invalidate_cache()
        names = self._files.ls(folder, detail=False) if self._files.isdir(folder) else []
        return sorted(int(stem) for name in names if (stem := name.rpartition("/")[2].removesuffix(".pt")).isdigit())

    def checkpoint(self, training: str, number: int) -> Checkpoint:
        """Read a checkpoint."""
        return Checkpoint.load(io.BytesIO(self._read(training, _checkpoint_name(number))))

    # ------------------------------------------------------------------ writing

    @contextmanager
    def claimed(self, run: str) -> Iterator[bool]:
        """Keep other processes from the run for as long as the block lasts; False if another one has it."""
        if not self._local:
            yield True
            return
        locks = Path(self._root) / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / run)  # the system's own lock: it goes with its process, however that ends
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def begin(self, record: Record) -> str:
        """Open the run's folder, and return its name. What a damaged run left is put aside, not deleted."""
        run = record.identity
        if self.status(run).state == "damaged":
            self._files.mv(self._path(run), f"{self._path(run)}.damaged-{uuid.uuid4().hex[:8]}", recursive=True)
        self._files.makedirs(self._path(run), exist_ok=True)
        if self._files.exists(self._path(run, "status.json")):
            self._files.rm_file(self._path(run, "status.json"))
        self._write(run, "config.json", json.dumps(record.to_json(), indent=2).encode())
        return run

    def save_checkpoint(self, training: str, number: int, checkpoint: Checkpoint) -> None:
        """Write a checkpoint."""
        buffer = io.BytesIO()
        checkpoint.save(buffer)
        self._files.makedirs(self._path(training, "checkpoints"), exist_ok=True)
        self._write(training, _checkpoint_name(number), buffer.getvalue())

    def complete(
        self,
        run: str,
        curve: tuple[Point, ...],
        records: tuple[StepRecord, ...] = (),
        network: Mapping[str, torch.Tensor] | None = None,
        **details: object,
    ) -> None:
        """Write what came of a run, and that it is complete."""
        names = ["curve.parquet", *map(_checkpoint_name, self.checkpoints(run))]
        columns = [field.name for field in fields(Point)]
        self._write(run, "curve.parquet", _parquet(pd.DataFrame([asdict(point) for point in curve], columns=columns)))
        if network is not None:
            names.append("network.pt")
            buffer = io.BytesIO()
            torch.save(dict(network), buffer)
            self._write(run, "network.pt", buffer.getvalue())
        if records:
            names.append("steps.parquet")
            rows = [{"step": number, **_row(record)} for number, record in enumerate(records, start=1)]
            self._write(run, "steps.parquet", _parquet(pd.DataFrame(rows)))
        checksums = {name: hashlib.sha256(self._read(run, name)).hexdigest() for name in names}
        self._finish(run, {"state": "complete", **details, "files": checksums})

    def fail(self, run: str, error: BaseException, **details: object) -> None:
        """Write that a run failed, and why."""
        lines = traceback.format_exception_only(error)
        self._finish(run, {"state": "failed", **details, "error": "".join(lines).strip()})

    def _finish(self, run: str, status: Mapping[str, object]) -> None:
        finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._write(run, "status.json", json.dumps({**status, "finished": finished}, indent=2).encode())

    def _path(self, run: str, name: str = "") -> str:
        return f"{self._root}/{run}/{name}".rstrip("/")

    def _json(self, run: str, name: str) -> dict[str, object]:
        try:
            content = json.loads(self._read(run, name))
        except ValueError as error:
            raise ValueError(f"{name} cannot be read ({error})") from error
        if not isinstance(content, dict):
            raise ValueError(f"{name} holds {content!r}, expected a JSON object")
        return content

    def _read(self, run: str, name: str) -> bytes:
        return self._files.cat_file(self._path(run, name))

    def _write(self, run: str, name: str, content: bytes) -> None:
        """Write a file whole or not at all."""
        path = self._path(run, name)
        if not self._local:  # object stores know no half-written file
            self._files.pipe_file(path, content)
            return
        part = Path(f"{path}.{uuid.uuid4().hex[:8]}.part")
        try:
            part.write_bytes(content)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _checkpoint_name(number: int) -> str:
    return f"checkpoints/{number:02d}.pt"


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _row(record: StepRecord) -> dict[str, object]:
    return {**{name: getattr(record, name) for name in STEP_COLUMNS}, "outcome": record.outcome.name.lower()}
