"""Two optimizers over the same parameters as one: their parameters compared, their states merged and taken apart."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

StateDict = dict[str, Any]

# What belongs to the second optimizer has this before its name.
SECOND = "second."
# One entry of the first group, as tools for distributed checkpoints carry groups and states along, and nothing else.
ENTRY = "phase_switch"


def refuse_different_parameters(first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
    """Raise ValueError unless both optimizers have the same parameters, naming those that one of them lacks."""
    if first is second:
        raise ValueError("first and second must be two optimizers, not one and the same")
    ours, theirs = parameters_of(first), parameters_of(second)
    lacking = {
        "second": [p for p in ours if all(p is not q for q in theirs)],
        "first": [p for p in theirs if all(p is not q for q in ours)],
    }
    complaints = [
        f"{name} lacks {len(tensors)}, of shape {', '.join(str(tuple(p.shape)) for p in tensors[:5])}"
        for name, tensors in lacking.items()
        if tensors
    ]
    if complaints:
        raise ValueError(f"first and second must have the same parameters, but {' and '.join(complaints)}")


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Its parameters, in the order that its state dict numbers them."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def merged_view(first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> defaultdict[Any, Any]:
    """The states of both as one, by parameter; new dictionaries, which hold the optimizers' own tensors."""
    view: defaultdict[Any, Any] = defaultdict(dict, {p: dict(state) for p, state in first.state.items()})
    for p, state in second.state.items():
        view[p] = {**view[p], **{SECOND + name: value for name, value in state.items()}}
    return view


def merged(first: torch.optim.Optimizer, second: torch.optim.Optimizer, entry: StateDict) -> StateDict:
    """The state dicts of both as one, which looks like the first's."""
    whole, other = first.state_dict(), second.state_dict()
    numbers = _numbers(first, second)
    state = {number: dict(one) for number, one in whole["state"].items()}
    for number, one in other["state"].items():
        named = {SECOND + name: value for name, value in one.items()}
        state[numbers[number]] = {**state.get(numbers[number], {}), **named}
    head, *rest = whole["param_groups"]
    entry = {**entry, "second": other["param_groups"]}
    return {**whole, "state": state, "param_groups": [{**head, ENTRY: entry}, *rest]}


def taken_apart(
    whole: StateDict, first: torch.optim.Optimizer, second: torch.optim.Optimizer
) -> tuple[StateDict, StateDict, StateDict]:
    """Undo `merged`.

    Returns:
        The state dicts of the first and the second optimizer, and the entry.

    Raises:
        ValueError: If it is no such state, or one of other groups.
    """
    groups = [dict(group) for group in whole["param_groups"]]
    entry = groups[0].pop(ENTRY, None) if groups else None
    if not isinstance(entry, dict):
        raise ValueError(
            f"this is no state of a PhaseSwitch: its first group has no entry {ENTRY!r}. The state of one of the two "
            "optimizers alone goes into switch.first or switch.second"
        )
    for name, optimizer, saved in (("first", first, groups), ("second", second, entry["second"])):
        sizes = [[len(group["params"]) for group in some] for some in (saved, optimizer.param_groups)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"the saved groups of {name} have {sizes[0]} parameters, those here {sizes[1]}")
    # Saved numbers, or names, which tools for distributed checkpoints put into their place.
    saved_first, saved_second = ([p for g in some for p in g["params"]] for some in (groups, entry["second"]))
    back = {saved_first[ours]: saved_second[theirs] for theirs, ours in _numbers(first, second).items()}
    own: dict[Any, StateDict] = {}
    other: dict[Any, StateDict] = {}
    for number, one in whole["state"].items():
        of_second = {name for name in one if str(name).startswith(SECOND)}
        if one.keys() - of_second:
            own[number] = {name: value for name, value in one.items() if name not in of_second}
        if of_second:
            other[back[number]] = {name.removeprefix(SECOND): one[name] for name in of_second}
    return (
        {**whole, "state": own, "param_groups": groups},
        {"state": other, "param_groups": entry["second"]},
        entry,
    )


def _numbers(first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> dict[int, int]:
    """From each parameter's number in the second optimizer's state dict to that in the first's."""
    ours = {id(p): number for number, p in enumerate(parameters_of(first))}
    return {number: ours[id(p)] for number, p in enumerate(parameters_of(second))}
