"""The strategies that there are, by name."""

import ast
import inspect
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch

from latephase.study.problems import Problem
from latephase.study.schedules import SCHEDULES
from latephase.study.strategies import (
    HF,
    LBFGS,
    SGD_CONSTANT,
    SGD_COSINE,
    SGD_PLATEAU,
    SGD_TENTH,
    SWA,
    FirstOrder,
    Strategy,
    hf_equal,
    hf_large,
)

PAPER_BATCHES = (256, 1024, 2048, 6144)  # m (Tatzel et al. 2022, Section 3.1)
EVALUATION_BATCH = 1024  # |B̄|, likewise

_PLAIN: dict[str, Strategy] = {s.name: s for s in (SGD_CONSTANT, SGD_TENTH, SGD_COSINE, SGD_PLATEAU, SWA())}
_SIZED: dict[str, Callable[[Problem, int], Strategy]] = {
    "lbfgs": lambda problem, examples: LBFGS("lbfgs", min(problem.gradient_batch, examples)),
    "hf_same_batch": lambda problem, examples: _hf("hf_same_batch", min(PAPER_BATCHES[-1], examples), examples, True),
    "hf_equal": lambda problem, examples: hf_equal(problem),
    "hf_large": lambda problem, examples: hf_large(problem),
}
NAMES = (*_PLAIN, *(f"hf_m{m}" for m in PAPER_BATCHES), *_SIZED)


def default_strategies(problem: Problem, examples: int) -> list[Strategy]:
    """Return the paper's strategies as far as there are examples enough, and what else a sceptic asks for."""
    fitting = [f"hf_m{m}" for m in PAPER_BATCHES if m + _evaluation(examples) <= examples]
    names = [*_PLAIN, "lbfgs", *fitting, "hf_same_batch", "hf_large"]
    return [find_strategy(name, problem, examples) for name in names]


def parse_strategies(text: str, problem: Problem, examples: int) -> list[Strategy]:
    """Return the strategies of a list such as ``sgd_cosine, hf_m1024, adamw(lr=0.001, schedule=cosine)``; see below.

    Raises:
        ValueError: If it cannot be read, or one is unknown.
    """
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
    except SyntaxError:
        tree = None
    if not isinstance(tree, ast.List) or not tree.elts:
        raise ValueError(f"strategies are names with commas between, not {text!r}; there are: {', '.join(NAMES)}")
    return [find_strategy(ast.unparse(node), problem, examples) for node in tree.elts]


def find_strategy(name: str, problem: Problem, examples: int) -> Strategy:
    """Return the strategy called ``name``.

    Args:
        name: One of `NAMES`; ``hf_m…`` with any number; or an optimizer of `torch.optim` or of the package
            ``pytorch_optimizer``, with options like ``adamw(lr=0.001, schedule=cosine)``.
        problem: Gives batch sizes.
        examples: How many there are to train on.

    Raises:
        ValueError: If there is none, or not enough examples for it; the message names what there is.
    """
    if name in _PLAIN:
        return _PLAIN[name]
    if name in _SIZED:
        return _SIZED[name](problem, examples)
    if match := re.fullmatch(r"hf_m([1-9][0-9]*)", name):
        return _hf(name, int(match[1]), examples)
    return _by_optimizer(name)


def _evaluation(examples: int) -> int:
    return min(EVALUATION_BATCH, examples // 4)


def _hf(name: str, m: int, examples: int, same: bool = False) -> HF:
    evaluation = _evaluation(examples)
    if m > examples - (0 if same else evaluation):
        raise ValueError(
            f"strategy {name!r} needs {m} examples and {evaluation} others to judge itself, and there are {examples}"
        )
    return HF(name, m, m, evaluation, same)


def _by_optimizer(text: str) -> FirstOrder:
    """Read ``name`` or ``name(option=value, …)``."""
    try:
        node = ast.parse(text, mode="eval").body
        name = ast.unparse(node.func if isinstance(node, ast.Call) else node)
        keywords = node.keywords if isinstance(node, ast.Call) and not node.args else []
        options = {k.arg: _value(k.value) for k in keywords if k.arg is not None}
    except (SyntaxError, ValueError):
        raise ValueError(f"strategy {text!r} is neither a name nor of the form name(option=value)") from None
    optimizer = _find_optimizer(name)
    schedule = options.pop("schedule", "constant")
    if schedule not in SCHEDULES:
        raise ValueError(f"strategy {text!r}: the schedule is one of {', '.join(SCHEDULES)}, not {schedule!r}")
    lr = options.pop("lr", inspect.signature(optimizer).parameters["lr"].default)
    try:
        optimizer([torch.nn.Parameter(torch.zeros(2, 2))], lr=lr, **options)
    except Exception as error:
        raise ValueError(f"strategy {text!r}: {error}") from error
    return FirstOrder(text, optimizer, float(lr), SCHEDULES[schedule], options)


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _find_optimizer(name: str) -> Callable[..., torch.optim.Optimizer]:
    known = _torch_optimizers()
    if name.lower() in known:
        return known[name.lower()]
    try:
        import pytorch_optimizer
    except ImportError:
        more = "; with latephase[optimizers] those of pytorch_optimizer too"
    else:
        others = {other.lower() for other in pytorch_optimizer.get_supported_optimizers()}
        if name.lower().removeprefix("pytorch_optimizer.") in others:
            return pytorch_optimizer.load_optimizer(name.lower().removeprefix("pytorch_optimizer."))
        known, more = {**known, **dict.fromkeys(others)}, ""
    nearest = get_close_matches(name.lower(), [*NAMES, *known], cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    raise ValueError(
        f"unknown strategy {name!r}.{hint} There are: {', '.join(NAMES)}, hf_m with any number, "
        f"and the optimizers of torch.optim{more}."
    )


def _torch_optimizers() -> dict[str, Any]:
    """Those that step on a gradient alone and know a learning rate."""
    return {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type)
        and issubclass(kind, torch.optim.Optimizer)
        and kind not in (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
    }
