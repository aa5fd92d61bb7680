"""Each check returns what it was given, or names the argument, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from latephase import checks


@pytest.mark.parametrize(
    ("check", "value", "result"),
    [
        (checks.positive_integer, np.int64(3), 3),
        (checks.non_negative, torch.tensor(0.0), 0.0),
        (checks.positive, np.float32(0.5), 0.5),
        (checks.fraction, 1, 1.0),
        (checks.positive_fraction, 0.25, 0.25),
        (checks.positive_bounds, [1, 2.0], (1.0, 2.0)),
        (checks.floating_dtype, torch.bfloat16, torch.bfloat16),
        (checks.floating_dtype, None, None),
        (checks.boolean, False, False),
        (checks.pairs, iter([(1, 2)]), [(1, 2)]),
    ],
)
def test_what_is_allowed_comes_back_as_pythons_own(
    check: Callable[[str, object], object], value: object, result: object
) -> None:
    checked = check("it", value)
    assert checked == result
    assert type(checked) is type(result)


@pytest.mark.parametrize(
    ("check", "value", "error", "words"),
    [
        (checks.positive_integer, 0, ValueError, "it must be ≥ 1, not 0"),
        (checks.positive_integer, True, TypeError, "it must be an integer ≥ 1, not True"),
        (checks.non_negative, math.inf, ValueError, "it must be ≥ 0 and finite, not inf"),
        (checks.non_negative, math.nan, ValueError, "not nan"),
        (checks.positive, 0.0, ValueError, "it must be > 0 and finite, not 0.0"),
        (checks.fraction, 1.5, ValueError, r"it must be in \[0, 1\], not 1.5"),
        (checks.positive_fraction, 0, ValueError, "it must be > 0 and at most 1, not 0"),
        (checks.positive_bounds, (2.0, 1.0), ValueError, "0 < lower ≤ upper"),
        (checks.positive_bounds, (1.0,), TypeError, "a pair"),
        (checks.floating_dtype, torch.int64, TypeError, "floating-point torch.dtype or None"),
        (checks.boolean, 1, TypeError, "True or False, not 1"),
        (checks.function, 3, TypeError, "it must be callable, not 3"),
        (checks.pairs, [(1, 2), (3,)], ValueError, r"it\[1\] must be a pair"),
        (checks.pairs, [], ValueError, "at least one"),
        (checks.pairs, 3, TypeError, "a list of"),
    ],
)
def test_what_is_not_is_named(
    check: Callable[[str, object], object], value: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        check("it", value)


def test_a_choice_names_all_there_are() -> None:
    assert checks.choice("it", "a", ["a", "b"]) == "a"
    with pytest.raises(ValueError, match="it must be one of 'a', 'b', not 'c'"):
        checks.choice("it", "c", ["a", "b"])


def test_the_map_of_a_user_cannot_touch_its_argument_and_returns_a_vector_of_its_kind() -> None:
    v = torch.ones(2)
    assert torch.equal(checks.vector_map("M", lambda x: x.mul_(2.0).double())(v), 2.0 * torch.ones(2))
    assert torch.equal(v, torch.ones(2))
    with pytest.raises(ValueError, match=r"the result of M must be .* shape \(2,\)"):
        checks.vector_map("M", lambda x: x[:1])(v)
    with pytest.raises(TypeError, match="the result of M must be a tensor"):
        checks.vector_map("M", lambda x: 3.0)(v)
