"""Optimizers by name: of `torch.optim`, and of the package ``pytorch_optimizer`` where that is installed."""

from collections.abc import Callable, Iterable

import torch

Maker = Callable[..., torch.optim.Optimizer]


def find_optimizer(name: str) -> Maker | None:
    """Return what makes the optimizer called ``name``, in capitals or not; None if there is none."""
    own = _torch_optimizers()
    if name.lower() in own:
        return own[name.lower()]
    other = name.lower().removeprefix("pytorch_optimizer.")
    if other not in _other_names():
        return None
    import pytorch_optimizer

    return pytorch_optimizer.load_optimizer(other)


def optimizer_names() -> list[str]:
    """Return the names of all that there are."""
    return [*_torch_optimizers(), *_other_names()]


def has_others() -> bool:
    """Whether ``pytorch_optimizer`` is installed."""
    return bool(_other_names())


def _other_names() -> set[str]:
    try:
        import pytorch_optimizer
    except ImportError:
        return set()
    names: Iterable[str] = pytorch_optimizer.get_supported_optimizers()
    return {name.lower() for name in names}


def _torch_optimizers() -> dict[str, Maker]:
    """Those that step on a gradient alone and know a learning rate."""
    return {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type)
        and issubclass(kind, torch.optim.Optimizer)
        and kind not in (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
    }
