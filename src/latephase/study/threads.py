"""How many threads PyTorch uses on a CPU: for one run, and not for those after it in the same process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let PyTorch use `number` threads within the block (None: as many as before), and as many as before after it.

    What the block sets itself is put back, too: code that loads data or builds a network would otherwise decide how
    fast the next problem's runs are.
    """
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
