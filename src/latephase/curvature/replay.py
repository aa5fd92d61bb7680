"""Run a program again, on stand-ins for its parameters and inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from latephase.curvature.program import Input, Parameter, Program, Result, mapped
from latephase.watching import tensors_in

# Where normalisations take what they normalise, their weight and their bias.
NORMALISATIONS: dict[Callable[..., object], tuple[int, ...]] = {
    F.layer_norm: (0, 2, 3),
    F.group_norm: (0, 2, 3),
    F.batch_norm: (0, 3, 4),
    F.instance_norm: (0, 3, 4),
    torch.layer_norm: (0, 2, 3),
    torch.group_norm: (0, 2, 3),
    torch.batch_norm: (0, 1, 2),
    torch.instance_norm: (0, 1, 2),
    torch.native_layer_norm: (0, 2, 3),
    torch.native_batch_norm: (0, 1, 2),
}


def replay(
    program: Program,
    parameters: Sequence[Tensor],
    inputs: Sequence[Tensor],
    beside_moving: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> list[Tensor]:
    """Run a program. No code of the closure's author runs.

    Args:
        program: What to run.
        parameters: Stand-ins for the parameters.
        inputs: Stand-ins for its inputs.
        beside_moving: What to do to an input that a normalisation takes beside others that may be moving.

    Returns:
        Its loss and its outputs.
    """
    results: dict[int, Tensor] = {}

    def value(leaf: object) -> object:
        if isinstance(leaf, Parameter):
            return parameters[leaf.number]
        if isinstance(leaf, Result):
            return results[leaf.number]
        return inputs[leaf.number] if isinstance(leaf, Input) else leaf

    def beside(leaf: object) -> object:
        if isinstance(leaf, Input) and inputs[leaf.number].is_floating_point():
            return beside_moving(inputs[leaf.number])
        return value(leaf)

    for call in program.calls:
        places = NORMALISATIONS.get(call.function, ())
        args = [mapped(arg, beside if i in places else value) for i, arg in enumerate(call.args)]
        names = ("input", "weight", "bias") if places else ()
        kwargs = {name: mapped(arg, beside if name in names else value) for name, arg in call.kwargs.items()}
        with call.settings.entered():
            returned = list(tensors_in(call.function(*args, **kwargs)))
            if call.function is F.embedding:
                returned = [_padded(embedded, *args, **kwargs) for embedded in returned]
        results.update(zip(call.results, returned, strict=True))
    return mapped(program.ends, value)


def leaves_where_needed(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return stand-ins for inputs, of which those are leaves with a gradient that are so in the program."""
    flags = [flag for _, flag in program.inputs]
    return [t.detach().requires_grad_() if flag else t.detach() for t, flag in zip(inputs, flags, strict=True)]


def _padded(embedded: Tensor, indices: Tensor, weight: Tensor, padding_idx: int | None = None, **_: object) -> Tensor:
    """Embeddings in which those of the padding are constants, as in the backward pass; forward mode forgets that."""
    if padding_idx is None:
        return embedded
    return torch.where((indices == padding_idx % weight.shape[0]).unsqueeze(-1), embedded.detach(), embedded)
