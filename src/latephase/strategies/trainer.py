"""The usual trainer: its steps change one network, and that is what is judged."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from latephase.strategies.strategy import Snapshot, Step


class Stateful(Protocol):
    """What has a state that can be saved and loaded, as optimizers have."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in tensors and what JSON holds."""

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Go on from such a state."""


@dataclass
class NetworkTrainer:
    """See `Trainer`.

    Attributes:
        step: Takes one step, given the fraction of the budget spent so far.
        network: What steps change.
        memory: What else later steps depend on, by name: an optimizer, the batches drawn. Random number generators are
            the caller's to save.

    >>> network = nn.Linear(1, 1)
    >>> trainer = NetworkTrainer(lambda spent: Step(gradients=1.0), network)
    >>> before = trainer.snapshot()
    >>> _ = nn.init.zeros_(network.weight)
    >>> trainer.restore(before)
    >>> bool(network.weight == before["weight"])
    True
    """

    step: Callable[[float], Step]
    network: nn.Module
    memory: Mapping[str, Stateful] = field(default_factory=dict)

    def judged(self) -> nn.Module:
        """See `Trainer.judged`."""
        return self.network

    def snapshot(self) -> Snapshot:
        """See `Trainer.snapshot`."""
        return copied_state(self.network)

    def restore(self, snapshot: Snapshot) -> None:
        """See `Trainer.restore`."""
        self.network.load_state_dict(snapshot)

    def state_dict(self) -> dict[str, Any]:
        """See `Resumable.state_dict`."""
        memory = {name: copy.deepcopy(part.state_dict()) for name, part in self.memory.items()}
        return {"network": copied_state(self.network), **memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Resumable.load_state_dict`."""
        self.network.load_state_dict(state["network"])
        for name, part in self.memory.items():
            part.load_state_dict(copy.deepcopy(state[name]))  # which PyTorch's optimizers do not copy


def copied_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the network's state dict."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
