"""Examples from what people have: tensors, data sets, loaders, streams of batches."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset, Subset, default_collate

from latephase.checks import positive_integer
from latephase.distributed import Ranks
from latephase.tasks.split import Split

BATCH_SIZE = 128  # examples per gradient where neither the user nor a loader says
MOST_BYTES = 2**30
"""How much of a data set or of a stream is kept in memory."""


class Examples(NamedTuple):
    """Examples to draw from.

    Attributes:
        split: They.
        batch_size: That of the loader that they came from; None where there is none.
        remark: What is worth knowing about how they were read; empty where there is nothing.
    """

    split: Split
    batch_size: int | None = None
    remark: str = ""

    def size_of_batches(self, given: int | None) -> int:
        """Return the batch size that was given, or else the loader's, or else a usual one."""
        return self.batch_size or BATCH_SIZE if given is None else positive_integer("batch_size", given)


def share_of(name: str, found: Examples, ranks: Ranks) -> Examples:
    """Return the examples of this process, of several that train together; all have as many.

    Where all have read the same, they are shared out, every so manyth to one process; else each has its own already,
    and those beyond the shortest share are left out.

    Args:
        name: What the user calls the argument.
        found: What this process has read, from the same random numbers as the others.
        ranks: The processes.

    Raises:
        ValueError: If there are fewer examples than processes.
    """
    if ranks.count == 1:
        return found
    count = len(found.split)
    looks = ranks.gather(f"the examples of {name}", lambda: _print_of(found.split))
    if len(set(looks)) == 1:
        own, shortest = range(ranks.rank, count, ranks.count), count // ranks.count
    else:
        own, shortest = range(count), min(length for length, _ in looks)
    if shortest == 0:
        raise ValueError(f"{name} must have at least one example for each of {ranks.count} processes, not {count}")
    left_out = len(own) - shortest
    remark = f"{left_out:,} examples of {name} are left out, as all processes use as many" if left_out else found.remark
    return found._replace(split=_part(found.split, own[:shortest]), remark=remark)


def _print_of(split: Split) -> tuple[int, int]:
    """How many examples there are, and what shows whether others are the same."""
    few = split.take(torch.tensor(sorted({*range(min(8, len(split))), *range(max(0, len(split) - 8), len(split))})))
    bits = (bytes(tensor.cpu().contiguous().view(torch.uint8).flatten().tolist()) for tensor in _tensors(few))
    return len(split), zlib.crc32(b"".join(bits))


def _part(split: Split, index: range) -> Split:
    if isinstance(split, LoadedOnDemand):
        return replace(split, dataset=Subset(split.dataset, index))
    return split.take(torch.tensor(index))


def examples(name: str, data: object, device: torch.device) -> Examples:
    """Return examples of pairs (inputs, targets).

    What always gives the same examples is read once and kept, up to `MOST_BYTES`. A data set whose examples differ from
    one look to the next (random augmentation) is read afresh for each batch. Of a stream as much is read as is kept.

    Args:
        name: What the user calls the argument.
        data: A pair of tensors with a common first dimension (or of lists and dictionaries of such), a map-style data
            set of pairs, a `DataLoader`, or an iterable of batches (inputs, targets).
        device: What computes on them.

    Raises:
        TypeError: If it is none of these, or gives something else than pairs.
        ValueError: If it is empty, or inputs and targets differ in number.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(_is_tensors(part) for part in data):
        return Examples(_checked(name, Split(*_moved((data[0], data[1]), device))))
    if isinstance(data, DataLoader):
        if isinstance(data.dataset, IterableDataset) or data.batch_size is None:
            return _stream(name, data, device)._replace(batch_size=data.batch_size)
        return _of_a_data_set(name, data.dataset, data.collate_fn, device)._replace(batch_size=data.batch_size)
    if (
        hasattr(data, "__len__")
        and hasattr(data, "__getitem__")
        and not isinstance(data, (list, tuple, str, dict, Tensor))
    ):
        return _of_a_data_set(name, data, default_collate, device)
    if isinstance(data, Iterable) and not isinstance(data, (str, dict, Tensor)):
        return _stream(name, data, device)
    raise TypeError(
        f"{name} must be a pair of tensors, a data set of pairs, a DataLoader or an iterable of batches "
        f"(inputs, targets), not {type(data).__name__}"
    )


@dataclass(frozen=True)
class LoadedOnDemand(Split):
    """Examples that a data set makes afresh whenever they are looked at.

    Attributes:
        dataset: With a length, and pairs at indices.
        collate: Makes a batch of a list of pairs.
        device: What the batches are moved to.
    """

    dataset: Any
    collate: Any
    device: torch.device

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, index: Tensor | slice) -> Split:
        """See `Split.take`."""
        chosen = range(*index.indices(len(self))) if isinstance(index, slice) else index.tolist()
        return Split(*_pair("the data set", self.collate([self.dataset[i] for i in chosen]), self.device))


def _of_a_data_set(name: str, dataset: Any, collate: Any, device: torch.device) -> Examples:
    if len(dataset) == 0:
        raise ValueError(f"{name} must have at least one example, not 0")
    nothing = torch.empty(0, device=device)
    split = LoadedOnDemand(nothing, nothing, dataset, collate, device)
    few = slice(0, min(8, len(split)))
    once, again = (split.take(few) for _ in range(2))
    if not _equal(once, again):
        return Examples(split, remark=f"{name} gives other examples at every look, so each batch is read afresh")
    if _bytes(once) / len(once) * len(split) > MOST_BYTES:
        return Examples(split, remark=f"{name} is too large to be kept in memory, so each batch is read afresh")
    return Examples(split.take(slice(0, len(split))))


def _stream(name: str, batches: Iterable[object], device: torch.device) -> Examples:
    read: list[Split] = []
    size, more = 0, False
    for batch in batches:
        read.append(_checked(name, Split(*_pair(name, batch, device))))
        size += _bytes(read[-1])
        if size > MOST_BYTES:
            more = True
            break
    if not read:
        raise ValueError(f"{name} gave no batch; an iterator that has been used up already gives none")
    inputs = pytree.tree_map(lambda *parts: torch.cat(parts), *(part.inputs for part in read))
    targets = pytree.tree_map(lambda *parts: torch.cat(parts), *(part.targets for part in read))
    split = Split(inputs, targets)
    kept = f"the first {len(split):,} examples of {name} were read and kept" if more else ""
    return Examples(split, len(read[0]), kept)


def _pair(name: str, batch: object, device: torch.device) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(map(_is_tensors, batch)):
        raise TypeError(
            f"{name} must give pairs (inputs, targets) of tensors, not {type(batch).__name__}; for losses of another "
            "form give finish a closure that returns (loss, outputs)"
        )
    return _moved((batch[0], batch[1]), device)


def _moved(pair: tuple[Any, Any], device: torch.device) -> tuple[Any, Any]:
    return pytree.tree_map(lambda leaf: leaf.to(device), pair)


def _is_tensors(value: object) -> bool:
    leaves = pytree.tree_leaves(value)
    return bool(leaves) and all(isinstance(leaf, Tensor) and leaf.dim() > 0 for leaf in leaves)


def _tensors(split: Split) -> Iterator[Tensor]:
    yield from pytree.tree_leaves((split.inputs, split.targets))


def _checked(name: str, split: Split) -> Split:
    lengths = {len(tensor) for tensor in _tensors(split)}
    if len(lengths) != 1:
        raise ValueError(f"{name}: inputs and targets must have a common first dimension, not {sorted(lengths)}")
    if lengths == {0}:
        raise ValueError(f"{name} must have at least one example, not 0")
    return split


def _equal(one: Split, other: Split) -> bool:
    pairs = zip(_tensors(one), _tensors(other), strict=True)
    return all(a.shape == b.shape and bool(torch.equal(a, b)) for a, b in pairs)


def _bytes(split: Split) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(split))
