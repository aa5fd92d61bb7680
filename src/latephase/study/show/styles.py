"""How strategies look, in light and in dark, on a screen and in grey print."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from latephase.strategies.style import Style
from latephase.study.strategies.order import in_order, plain_name
from latephase.study.strategies.registry import DECLARATIONS

_OWN = {declaration.name: declaration.style for declaration in DECLARATIONS if declaration.style is not None}


# For all others: cycles of lengths 4, 5 and 3, so that no two of the first 60 agree in everything.
_COLORS = (("#6a51a3", "#b8a4e8"), ("#1b1b1b", "#f5f5f5"), ("#66771c", "#b9cf5a"), ("#a6604f", "#e0a08f"))
_DASHES = ((9.0, 1.5), (2.0, 1.0), (), (9.0, 1.5, 1.5, 1.5), (4.0, 2.0))
_MARKERS = ("p", "d", "H")


def styles(strategies: Iterable[str]) -> dict[str, Style]:
    """Return a style for every strategy.

    Those of the package have their own. With options they have its colour, and dashes that nothing else has. Others
    take the styles that remain, in order.
    """
    found: dict[str, Style] = {}
    variants, others = Counter[str](), count()
    for name in in_order(strategies):
        plain = plain_name(name)
        if plain not in _OWN:
            found[name] = _remaining(next(others))
        elif name == plain:
            found[name] = _OWN[name]
        else:
            found[name] = _variant(_OWN[plain], variants[plain])
            variants[plain] += 1
    return found


def _variant(style: Style, number: int) -> Style:
    """Dash and dot, the dash longer for each."""
    return replace(style, dashes=(2.0 + 2.0 * number, 1.2, 0.8, 1.2), marker=_MARKERS[number % len(_MARKERS)])


def _remaining(number: int) -> Style:
    light, dark = _COLORS[number % len(_COLORS)]
    return Style(light, dark, _DASHES[number % len(_DASHES)], _MARKERS[number % len(_MARKERS)])


@dataclass(frozen=True)
class Look:
    """What figures look like apart from the strategies.

    Attributes:
        name: `"light"` or `"dark"`.
        paper: The ground's colour.
        text: That of titles and labels.
        quiet: That of ticks and remarks.
        grid: That of grid lines.
        train: That of what was measured on training data, where no strategies are told apart.
        test: That of what was measured on test data.
        narrow: Whether panels stand below each other, for a phone.
    """

    name: str
    paper: str
    text: str
    quiet: str
    grid: str
    train: str
    test: str
    narrow: bool = False

    def color(self, style: Style) -> str:
        """Return the style's colour on this ground."""
        return style.light if self.name == "light" else style.dark

    def settings(self) -> dict[Any, Any]:
        """Return Matplotlib's settings for drawing."""
        return {
            "axes.edgecolor": self.quiet,
            "axes.facecolor": self.paper,
            "axes.grid": True,
            "axes.labelcolor": self.text,
            "axes.labelsize": 9.0,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlecolor": self.text,
            "axes.titlelocation": "left",
            "axes.titlesize": 10.0,
            "axes.titleweight": "bold",
            "figure.facecolor": self.paper,
            "font.size": 9.5,
            "legend.fontsize": 9.0,
            "legend.frameon": False,
            "legend.handlelength": 3.2,
            "lines.linewidth": 1.7,
            "text.color": self.text,
        }


LIGHT = Look("light", "#ffffff", "#1c1e21", "#5f6368", "#e7e7e7", "#0072b2", "#d55e00")
DARK = Look("dark", "#16181d", "#e8e6e3", "#a9adb3", "#2d3139", "#56b4e9", "#ff8a4c")
