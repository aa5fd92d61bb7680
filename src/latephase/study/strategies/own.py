"""Strategies of one's own: returned by a function in a file or a module."""

import inspect
import json
from dataclasses import dataclass

import torch
from torch import nn

from latephase.strategies.options import Call
from latephase.strategies.strategy import Family, Settings, Strategy, Trainer
from latephase.study.data import Data
from latephase.study.own import code_hash, find_function
from latephase.study.threads import threads
from latephase.tasks.task import Task

_PARTS = ("name", "family", "settings", "start")


@dataclass(frozen=True)
class Own:
    """A strategy of one's own: to its settings belong the place it comes from and a hash of the code there.

    Attributes:
        name: What tables and figures call it; options that it was asked for with are part of that.
        reference: What finds it again: `path/to/my_file.py:strategy`, with options.
        code: See `code_hash`.
        strategy: What the function returned.
    """

    name: str
    reference: str
    code: str | None
    strategy: Strategy

    @property
    def family(self) -> Family:
        """See `Strategy.family`."""
        return self.strategy.family

    def settings(self) -> Settings:
        """See `Strategy.settings`."""
        return {**self.strategy.settings(), "reference": self.reference, "code": self.code}

    def start(self, task: Task, model: nn.Module, data: Data, generator: torch.Generator) -> Trainer:
        """See `Strategy.start`."""
        return self.strategy.start(task, model, data, generator)


def build_own(call: Call) -> Own:
    """Return what a function returns when it is called with the options given.

    What goes wrong inside the file, the module or the function is raised as it is.

    Raises:
        ValueError: If there is no such file, module or function, it does not take the options, or it does not return a
            `Strategy`; the message says what is missing.
    """
    with threads(None):
        function = find_function(call.name)
        try:
            inspect.signature(function).bind(**call.options)
        except TypeError as error:
            options = f"the options {', '.join(call.options)}" if call.options else "no options"
            raise ValueError(f"{call.name} cannot be called with {options} ({error})") from error
        strategy = _checked(function(**call.options), call.name)
    options_text = call.text.removeprefix(call.name)
    return Own(f"{strategy.name}{options_text}", call.text, code_hash(call.name), strategy)


def reference_of(strategy: Strategy) -> str:
    """Return what finds the strategy again."""
    return strategy.reference if isinstance(strategy, Own) else strategy.name


def _checked(strategy: object, source: str) -> Strategy:
    if not isinstance(strategy, Strategy):
        missing = [part for part in _PARTS if not hasattr(strategy, part)]
        raise ValueError(
            f"{source} returned {type(strategy).__name__}, which has no {', '.join(missing)}; "
            "expected what latephase.strategies.strategy.Strategy says"
        )
    if not isinstance(strategy.family, Family):
        families = ", ".join(f"Family.{family.name}" for family in Family)
        raise ValueError(f"{source} returned a strategy of family {strategy.family!r}; there are: {families}")
    try:
        json.dumps(strategy.settings())
    except TypeError as error:
        raise ValueError(f"{source} returned a strategy whose settings JSON cannot hold ({error})") from error
    return strategy
