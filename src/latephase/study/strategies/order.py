"""In which order tables and legends show strategies."""

from collections.abc import Iterable

from latephase.strategies.strategy import Family
from latephase.study.strategies.registry import DECLARATIONS

_RANKS = {
    declaration.name: rank
    for rank, declaration in enumerate(sorted(DECLARATIONS, key=lambda known: list(Family).index(known.family)))
}


def in_order(strategies: Iterable[str]) -> list[str]:
    """Return the names without repetition: known strategies first, then the others in the order they come.

    Known ones with options follow those without.

    >>> in_order(["adamw", "hf_m256(lr=0.5)", "hf_m256", "sgd_constant", "adamw"])
    ['sgd_constant', 'hf_m256', 'hf_m256(lr=0.5)', 'adamw']
    """
    names = dict.fromkeys(strategies)
    return sorted(names, key=lambda name: (_RANKS.get(plain_name(name), len(_RANKS)), name not in _RANKS))


def plain_name(name: str) -> str:
    """Return a strategy's name without its options."""
    return name.partition("(")[0]
