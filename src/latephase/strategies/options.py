"""Options of strategies: read from the command line, written as JSON has them."""

import ast
import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from typing import NamedTuple

import torch


class Call(NamedTuple):
    """A strategy as it is asked for, such as `hf_m1024(damping=0.1)` or `my_file.py:strategy`.

    Attributes:
        name: What stands before the brackets.
        options: What stands in them.
        text: All of it, written as it always is: what reads alike is spelled alike.
    """

    name: str
    options: dict[str, object]
    text: str


def split_list(text: str) -> list[str]:
    """Return the parts of a list between its commas, but for those in brackets.

    >>> split_list("swa, adam(lr=0.1, betas=(0.8, 0.9)),")
    ['swa', 'adam(lr=0.1, betas=(0.8, 0.9))']
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def parse_call(text: str) -> Call:
    """Read `name` or `name(option=value, …)`, where the name may be `path/to/my_file.py:function`.

    Values are Python's numbers, strings, lists and so on, `torch.float32` and the like, and words without quotes.

    Returns:
        The name, the options and the text as Python would write it.

    Raises:
        SyntaxError: If that is not Python.
        ValueError: If it is Python of another form.
    """
    head, bracket, rest = text.partition("(")
    place, colon, function = head.rpartition(":")
    node = ast.parse(f"{function}{bracket}{rest}".strip(), mode="eval").body
    callee = node.func if isinstance(node, ast.Call) else node
    keywords = node.keywords if isinstance(node, ast.Call) else []
    plain = isinstance(callee, (ast.Name, ast.Attribute)) and not (isinstance(node, ast.Call) and node.args)
    try:
        options = {keyword.arg: _value(keyword.value) for keyword in keywords}
    except ValueError:
        plain = False
    if not plain or None in options:
        raise ValueError(f"strategy {text!r} is neither a name nor of the form name(option=value)")
    named = {name: value for name, value in options.items() if name is not None}
    return Call(f"{place}{colon}{ast.unparse(callee)}", named, f"{place}{colon}{ast.unparse(node)}")


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch":
        dtype = getattr(torch, node.attr, None)
        if isinstance(dtype, torch.dtype):
            return dtype
    return ast.literal_eval(node)


def defaults(function: Callable[..., object], without: tuple[str, ...] = ()) -> dict[str, object]:
    """Return the arguments of a function that have defaults, and these, but for those called `without`."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in without}


def plain(value: object) -> object:
    """Return what stands for an option's value in JSON: itself where it can, else a text that tells it from others.

    >>> plain((0.8, 0.9)), plain(torch.bfloat16), plain(torch.optim.SGD)
    ([0.8, 0.9], 'torch.bfloat16', 'torch.optim.sgd.SGD')
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    name = getattr(value, "__qualname__", None)  # of a function or class, whose repr may have an address in it
    return repr(value) if name is None else f"{getattr(value, '__module__', '')}.{name}"
