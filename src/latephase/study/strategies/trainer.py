"""The usual trainer: its steps change one network, and that is what is judged."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from latephase.study.strategies.strategy import Snapshot, Step


@dataclass
class NetworkTrainer:
    """See `Trainer`.

    Attributes:
        step: Takes one step, given the fraction of the budget spent so far.
        network: What steps change.
    """

    step: Callable[[float], Step]
    network: nn.Module

    def judged(self) -> nn.Module:
        """See `Trainer.judged`."""
        return self.network

    def snapshot(self) -> Snapshot:
        """See `Trainer.snapshot`."""
        return copied_state(self.network)

    def restore(self, snapshot: Snapshot) -> None:
        """See `Trainer.restore`."""
        self.network.load_state_dict(snapshot)


def copied_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the network's state dict."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
