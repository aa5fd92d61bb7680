"""What a run is: all that its result depends on, by which it is named and found again."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from typing import ClassVar, TypeAlias

from latephase.study.runs.budget import Budget


def latephase_version() -> str:
    """Return the version of the code that makes runs now; a development version counts as the release to come."""
    return version("latephase").partition(".dev")[0]


def identify(content: Mapping[str, object]) -> str:
    """Return the name of the folder for a run: the start of a SHA-256 hash of what is in its record."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Training:
    """The first phase: a problem's network trained with SGD or what else its problem asks for.

    Attributes:
        reference: What `find_problem` knows the problem by.
        problem: Its name.
        lr: SGD's learning rate α.
        batch_size: SGD's batch size.
        epochs: Passes over the training data.
        weight_decay: Of the L2 term.
        first_phase: What it is trained by, see `Problem`.
        code: A hash of the file that builds the problem; None for the package's own and for those in modules.
        seed: For first weights, batches and dropout.
        device: Kind of device; results differ in rounding between kinds.
        latephase: Version of the code.
        processes: How many train together, each with batches of `batch_size`.

    >>> settings = 0.05, 32, 400, 5e-4, "sgd_constant", None
    >>> training = Training("digits_cnn", "digits_cnn", *settings, seed=0, device="cpu")
    >>> training.title
    'digits_cnn, training, seed 0'
    >>> from_json(training.to_json()) == training
    True
    """

    kind: ClassVar[str] = "training"
    timed: ClassVar[bool] = True  # a training's seconds are what budgets are a share of

    reference: str
    problem: str
    lr: float
    batch_size: int
    epochs: int
    weight_decay: float
    first_phase: str
    code: str | None
    seed: int
    device: str
    latephase: str = field(default_factory=latephase_version)
    processes: int = 1

    @property
    def identity(self) -> str:
        """The name of the run's folder."""
        return identify(self.to_json())

    @property
    def title(self) -> str:
        """What people call the run."""
        together = f", {self.processes} processes" if self.processes > 1 else ""
        return f"{self.problem}, training, seed {self.seed}{together}"

    def to_json(self) -> dict[str, object]:
        """Return the record in numbers, strings, lists and dictionaries; of one process it is as it always was."""
        content = {"kind": self.kind, **asdict(self)}
        if self.processes == 1:
            del content["processes"]
        return content


@dataclass(frozen=True)
class LateRun:
    """The second phase: a strategy, from a training's checkpoint, for a budget.

    Attributes:
        training: Identity of the training.
        checkpoint: Number of the checkpoint, from 1.
        reference: What `find_strategy` knows the strategy by.
        strategy: Its name in tables and figures.
        family: What kind of strategy it is.
        settings: What its steps depend on, the defaults of its optimizer included, in numbers, strings, lists and
            dictionaries. For a strategy of one's own there is a hash of its file among them.
        seed: For the batches that the strategy draws, and for dropout.
        budget: As it is written, see `Budget`.
        latephase: Version of the code.

    >>> run = LateRun("0123456789abcdef", 10, "swa", "swa", "averaging", {"every": 10}, seed=0, budget="10%")
    >>> run.title, run.timed
    ('swa, checkpoint 10, seed 0', True)
    """

    kind: ClassVar[str] = "run"

    training: str
    checkpoint: int
    reference: str
    strategy: str
    family: str
    settings: Mapping[str, object]
    seed: int
    budget: str
    latephase: str = field(default_factory=latephase_version)

    @property
    def identity(self) -> str:
        """The name of the run's folder."""
        return identify(self.to_json())

    @property
    def timed(self) -> bool:
        """Whether the result depends on the clock."""
        return Budget.parse(self.budget).unit != "gradients"

    @property
    def title(self) -> str:
        """What people call the run."""
        return f"{self.strategy}, checkpoint {self.checkpoint}, seed {self.seed}"

    def to_json(self) -> dict[str, object]:
        """Return the record in numbers, strings, lists and dictionaries."""
        return {"kind": self.kind, **asdict(self)}


Record: TypeAlias = Training | LateRun


def from_json(content: Mapping[str, object]) -> Record:
    """Return the record that `to_json` was of.

    Raises:
        ValueError: If it is none, or one of a version that recorded something else.
    """
    values = dict(content)
    kind = values.pop("kind", None)
    for make in (Training, LateRun):
        if kind == make.kind and {"processes", *values} >= {field.name for field in fields(make)} >= set(values):
            read: Callable[..., Record] = make
            return read(**values)
    raise ValueError("config.json is not one that this version of latephase writes")
