"""The strategies that there are, by name and with options."""

import inspect
from contextlib import suppress
from difflib import get_close_matches

from latephase.strategies.first_order import FirstOrder
from latephase.strategies.options import Call, parse_call, split_list
from latephase.strategies.schedules import SCHEDULES
from latephase.strategies.strategy import Declaration, Strategy, TooFewExamplesError
from latephase.study.problems import Problem
from latephase.study.strategies.optimizers import find_optimizer, has_others, optimizer_names
from latephase.study.strategies.order import plain_name
from latephase.study.strategies.own import build_own
from latephase.study.strategies.registry import DECLARATIONS

NAMES = tuple(declaration.name for declaration in DECLARATIONS if not declaration.numbered)


def default_strategies(problem: Problem, examples: int) -> list[Strategy]:
    """Return the paper's strategies as far as there are examples enough, and what else a sceptic asks for."""
    found: list[Strategy] = []
    for declaration in DECLARATIONS:
        if declaration.default:
            with suppress(TooFewExamplesError):
                found.append(declaration.build(declaration.name, problem, examples))
    return found


def parse_strategies(text: str, problem: Problem, examples: int) -> list[Strategy]:
    """Return the strategies of a list such as `sgd_cosine, hf_m1024(damping=0.1), adamw(lr=0.001)`; see below.

    Raises:
        ValueError: If it cannot be read, or one is unknown.
    """
    try:
        calls = [parse_call(part) for part in split_list(text)]
    except SyntaxError:
        calls = []
    if not calls:
        raise ValueError(f"strategies are names with commas between, not {text!r}; there are: {', '.join(NAMES)}")
    return [_find(call, problem, examples) for call in calls]


def find_strategy(text: str, problem: Problem, examples: int) -> Strategy:
    """Return the strategy called `text`.

    Args:
        text: One of `NAMES`, or `hf_m…` with any number; an optimizer of `torch.optim` or of the package
            `pytorch_optimizer`; or a function that returns a strategy, `path/to/my_file.py:strategy`. All of them
            may have options, such as `adamw(lr=0.001, schedule=cosine)`.
        problem: Gives batch sizes.
        examples: How many there are to train on.

    Raises:
        ValueError: If there is none, it does not take these options, or there are not enough examples for it; the
            message names what there is.
    """
    return _find(parse_call(text), problem, examples)


def _find(call: Call, problem: Problem, examples: int) -> Strategy:
    if ":" in call.name:
        own = build_own(call)
        if _declaration(plain_name(own.name)) is not None:
            raise ValueError(f"{call.name} returned a strategy called {own.name!r}, which is the name of another")
        return own
    declaration = _declaration(call.name)
    return _by_optimizer(call) if declaration is None else _declared(declaration, call, problem, examples)


def _declaration(name: str) -> Declaration | None:
    for declaration in DECLARATIONS:
        number = name.removeprefix(declaration.name)
        if name == declaration.name if not declaration.numbered else number != name and _is_number(number):
            return declaration
    return None


def _is_number(text: str) -> bool:
    return text.isdecimal() and not text.startswith("0")


def _declared(declaration: Declaration, call: Call, problem: Problem, examples: int) -> Strategy:
    for option in call.options:
        if option not in declaration.options:
            raise ValueError(
                f"strategy {call.text!r} has no option {option!r}; there are: {', '.join(declaration.options)}"
            )
    try:
        return declaration.build(call.text, problem, examples, **call.options)
    except TooFewExamplesError:
        raise
    except (TypeError, ValueError) as error:
        raise ValueError(f"strategy {call.text!r}: {str(error).removeprefix(f'strategy {call.text!r}: ')}") from error


def _by_optimizer(call: Call) -> FirstOrder:
    optimizer = find_optimizer(call.name)
    if optimizer is None:
        raise ValueError(_unknown(call.name))
    options = dict(call.options)
    schedule = options.pop("schedule", "constant")
    if schedule not in SCHEDULES:
        raise ValueError(f"strategy {call.text!r}: the schedule is one of {', '.join(SCHEDULES)}, not {schedule!r}")
    lr = options.pop("lr", inspect.signature(optimizer).parameters["lr"].default)
    if not isinstance(lr, (int, float)):
        raise ValueError(f"strategy {call.text!r}: lr must be a number, not {lr!r}")
    return FirstOrder(call.text, optimizer, float(lr), SCHEDULES[str(schedule)], options)


def _unknown(name: str) -> str:
    nearest = get_close_matches(name.lower(), [*NAMES, *optimizer_names()], cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    numbered = [f"{declaration.name} with any number" for declaration in DECLARATIONS if declaration.numbered]
    more = "" if has_others() else "; with latephase[optimizers] those of pytorch_optimizer too"
    return (
        f"unknown strategy {name!r}.{hint} There are: {', '.join([*NAMES, *numbered])}, "
        f"and the optimizers of torch.optim{more}."
    )
