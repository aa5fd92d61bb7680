"""Several processes that take one step together: what each computes on its part of the data is summed over all.

Decisions follow from the sums alone, so that all ranks take the same ones. Each exchange begins with a header of a few
integers, in which the ranks say what they are about to do and whether one of them has failed: so an exception on one
rank ends the step on all, and ranks that have parted are told instead of waiting for each other.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, NoReturn, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from latephase.transaction import ParametersWrittenError

Result = TypeVar("Result")
ProcessGroup = Any  # torch.distributed's, which not every build of PyTorch has


class RankError(RuntimeError):
    """Another rank failed, or the ranks have parted; the step has changed nothing."""


class RankLostError(RankError):
    """The ranks cannot exchange anything any more, as where one of them has died; the step has changed nothing."""


class Ranks(Protocol):
    """Those who take a step together. `what` names an exchange, for errors; all ranks make the same ones."""

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""

    @property
    def count(self) -> int:
        """How many there are."""

    @contextmanager
    def attended(self, what: str = "an exception") -> Iterator[None]:
        """Tell the other ranks of an exception that is raised in here, at their next exchange or at that called so."""

    def same(self, what: str, have: Callable[[], tuple[Sequence[Tensor], object]]) -> None:
        """Raise RankError unless all ranks have the same tensors and plain values; `what` says what that is."""

    def each(self, what: str, compute: Callable[[], Result]) -> Result:
        """Return what this rank computes, once all have computed theirs."""

    def sum(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return the sum of what the ranks compute, new tensors of one shape."""

    def number(self, what: str, compute: Callable[[], float]) -> float:
        """Return the sum of the numbers that the ranks compute."""

    def rows(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return all that the ranks compute, tensors of shapes (n, …), one below the other: (Σ n, …)."""

    def gather(self, what: str, compute: Callable[[], Result]) -> list[Result]:
        """Return what each rank computes, plain Python values."""


class Alone:
    """One process on its own."""

    rank, count = 0, 1

    @contextmanager
    def attended(self, what: str = "an exception") -> Iterator[None]:
        """See `Ranks`."""
        yield

    def same(self, what: str, have: Callable[[], tuple[Sequence[Tensor], object]]) -> None:
        """See `Ranks`."""

    def each(self, what: str, compute: Callable[[], Result]) -> Result:
        """See `Ranks`."""
        return compute()

    def sum(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """See `Ranks`."""
        return compute()

    def number(self, what: str, compute: Callable[[], float]) -> float:
        """See `Ranks`."""
        return compute()

    def rows(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """See `Ranks`."""
        return compute()

    def gather(self, what: str, compute: Callable[[], Result]) -> list[Result]:
        """See `Ranks`."""
        return [compute()]


ALONE = Alone()


class Together:
    """The ranks of a process group, for one step or as long as nothing fails.

    Args:
        group: The group; None for all processes.
        device: Where the group's backend takes its tensors.

    Attributes:
        attending: In how many `attended` blocks, one in another, this process is.
        known: The error that ends them, once all ranks have been told.
    """

    attending: ClassVar[int] = 0
    known: ClassVar[BaseException | None] = None

    def __init__(self, group: ProcessGroup | None, device: torch.device) -> None:
        self._group, self._device = group, device
        self.count, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self._over = False

    @contextmanager
    def attended(self, what: str = "an exception") -> Iterator[None]:
        """See `Ranks`."""
        Together.attending += 1
        try:
            yield
        except BaseException as error:
            if not self._over and not _is_known(error):
                self._meet(what, error)
            raise
        finally:
            Together.attending -= 1
            if not Together.attending:
                Together.known = None

    def same(self, what: str, have: Callable[[], tuple[Sequence[Tensor], object]]) -> None:
        """See `Ranks`."""
        tensors, values = have()
        digest = zlib.crc32(repr(values).encode())
        for tensor in tensors:
            digest = (31 * digest + _sum_of_bits(tensor)) % 2**62
        digests = [header.digest for header in self._meet(what, digest=digest)]
        others = [rank for rank, theirs in enumerate(digests) if theirs != digests[0]]
        if others:
            self._part(
                f"rank {_listed(others)} differs from rank 0 in {what}. Start from one state: broadcast the "
                "parameters, or load one checkpoint on all ranks; and let all make the same calls"
            )

    def each(self, what: str, compute: Callable[[], Result]) -> Result:
        """See `Ranks`."""
        result = self._told(what, compute)
        self._meet(what)
        return result

    def number(self, what: str, compute: Callable[[], float]) -> float:
        """See `Ranks`."""
        own = float(self._told(what, compute))
        return sum(header.number for header in self._meet(what, number=own))  # in one order on all ranks

    def sum(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """See `Ranks`."""
        part = self.each(what, compute)
        self._exchange(lambda: dist.all_reduce(part, group=self._group))
        return part

    def rows(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """See `Ranks`."""
        part = self._told(what, compute)
        sizes = [round(header.number) for header in self._meet(what, number=len(part))]
        whole = part.new_empty((sum(sizes), *part.shape[1:]))
        for rank, piece in enumerate(whole.split(sizes)):
            if rank == self.rank:
                piece.copy_(part)
            self._exchange(lambda: dist.broadcast(piece, group=self._group, group_src=rank))  # noqa: B023 — used at once
        return whole

    def gather(self, what: str, compute: Callable[[], Result]) -> list[Result]:
        """See `Ranks`."""
        return self._gather(self.each(what, compute))

    def _gather(self, value: Result) -> list[Result]:
        """What `dist.all_gather_object` does, which needs NumPy."""
        own = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(self._device)
        lengths = [own.new_zeros(1, dtype=torch.int64) for _ in range(self.count)]
        self._exchange(lambda: dist.all_gather(lengths, lengths[0].new_tensor([len(own)]), group=self._group))
        longest = max(int(length) for length in lengths)
        pieces = [own.new_zeros(longest) for _ in range(self.count)]
        padded = torch.cat([own, own.new_zeros(longest - len(own))])
        self._exchange(lambda: dist.all_gather(pieces, padded, group=self._group))
        return [
            pickle.loads(bytes(piece[: int(length)].tolist()))  # what this program has just written itself
            for piece, length in zip(pieces, lengths, strict=True)
        ]

    def _told(self, what: str, compute: Callable[[], Result]) -> Result:
        """Compute, and tell the others of an exception."""
        try:
            return compute()
        except BaseException as error:
            self._meet(what, error)
            raise

    def _meet(
        self, what: str, error: BaseException | None = None, *, digest: int = 0, number: float = 0.0
    ) -> list[Header]:
        """Say what is to come, and hear what the others say; return only if all are there, and none has failed."""
        own = Header(int(error is not None), zlib.crc32(what.encode()), digest, number).packed().to(self._device)
        packed = [torch.empty_like(own) for _ in range(self.count)]
        self._exchange(lambda: dist.all_gather(packed, own, group=self._group))
        headers = [Header.unpacked(row) for row in torch.stack(packed).cpu()]
        if any(header.failed for header in headers):
            self._end(error)
        others = [rank for rank, header in enumerate(headers) if header.code != headers[self.rank].code]
        if others:
            self._part(f"this one is at {what}, rank {_listed(others)} elsewhere; were they called in different ways?")
        Together.known = None
        return headers

    def _exchange(self, collective: Callable[[], object]) -> None:
        """Run a collective; where that itself fails there is no one left to tell."""
        over, self._over = self._over, True
        try:
            collective()
        except RuntimeError as error:
            raise _known(RankLostError(f"an exchange of {self.count} ranks failed; has one died? {error}")) from error
        self._over = over

    def _part(self, why: str) -> NoReturn:
        self._over = True
        raise _known(RankError(f"the {self.count} ranks of a step have parted: {why}"))

    def _end(self, error: BaseException | None) -> NoReturn:
        """Raise what ends the step on this rank, after one or more have failed."""
        written = isinstance(error, ParametersWrittenError)
        said = self._gather((None if error is None else f"{type(error).__name__}: {error}", written))
        if error is not None and all(also for _, also in said):
            raise error  # all have initialised their parameters, and the step begins once more
        self._over = True
        if error is not None and not written:
            raise _known(error)
        failed = "; ".join(f"rank {rank}: {words}" for rank, (words, _) in enumerate(said) if words is not None)
        raise _known(RankError(f"the step was given up on all ranks, as it failed on {failed}")) from error


def _known(error: BaseException) -> BaseException:
    """The error, of which all ranks now know: what else attends to them, here, is not to tell them again."""
    if Together.attending:
        Together.known = error
    return error


def _is_known(error: BaseException | None) -> bool:
    return error is not None and (error is Together.known or _is_known(error.__cause__))


class Header(NamedTuple):
    """What each rank says before an exchange.

    Attributes:
        failed: 1 after an exception, else 0.
        code: Stands for what is to come.
        digest: Of what ought to be the same on all ranks.
        number: One that is to be added up.
    """

    failed: int
    code: int
    digest: int
    number: float

    def packed(self) -> Tensor:
        """As integers of 64 bits, shape (4,)."""
        bits = torch.tensor(self.number, dtype=torch.float64, device="cpu").view(torch.int64)
        return torch.tensor([*self[:3], int(bits)], dtype=torch.int64, device="cpu")

    @classmethod
    def unpacked(cls, packed: Tensor) -> Header:
        """The inverse of `packed`."""
        failed, code, digest, _ = packed.tolist()
        return cls(failed, code, digest, float(packed[3].view(torch.float64)))


def find_ranks(process_group: ProcessGroup | None, device: torch.device, *, by_hand: bool = False) -> Ranks:
    """Return those who take a step together.

    Args:
        process_group: None, `"world"` or a group of `torch.distributed`.
        device: Where the parameters are.
        by_hand: Whether the caller sees to it that several processes stay together, where it names no group.

    Raises:
        RuntimeError: If there are several processes and none of them are named, or none where they are.
    """
    several = dist.is_available() and dist.is_initialized()
    if process_group is None:
        if several and not by_hand and dist.get_world_size() > 1:
            raise RuntimeError(
                f"torch.distributed runs {dist.get_world_size()} processes, whose models would part; "
                'process_group="world" sums losses, gradients and products over all of them'
            )
        return ALONE
    if not several:
        raise RuntimeError(
            "process_group needs torch.distributed to be there and initialised: start with torchrun, and call "
            "torch.distributed.init_process_group() before the first step"
        )
    return Together(None if process_group == "world" else process_group, device)


def mean(ranks: Ranks, what: str, compute: Callable[[], float]) -> float:
    """Return the mean of the numbers that the ranks compute, the same on each of them; see `Ranks.number`."""
    return ranks.number(what, compute) / ranks.count


def check_group(process_group: ProcessGroup | None) -> ProcessGroup | None:
    """Check for None, `"world"` or a process group."""
    known = process_group in (None, "world") or (dist.is_available() and isinstance(process_group, dist.ProcessGroup))
    if not known:
        raise ValueError(f'process_group must be None, "world" or a group of torch.distributed, not {process_group!r}')
    return process_group


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


def _sum_of_bits(tensor: Tensor) -> int:
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.detach().contiguous().view(words).sum(dtype=torch.int64))
