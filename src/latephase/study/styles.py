"""How strategies look, in light and in dark, on a screen and in grey print."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Style:
    """What a strategy is drawn with.

    Attributes:
        light: Its colour on a light ground.
        dark: Its colour on a dark ground.
        dashes: Lengths of dash, gap, … in units of the line's width; empty for a solid line.
        marker: Matplotlib's sign for its marker.
    """

    light: str
    dark: str
    dashes: tuple[float, ...]
    marker: str

    @property
    def linestyle(self) -> Any:
        """What Matplotlib calls the dashes."""
        return (0, self.dashes) if self.dashes else "-"


# Hues of Okabe and Ito's palette, which colour-blind readers can tell apart, made darker or lighter where they would
# have less than 3 : 1 of contrast with the ground. Dashes and markers are for print without colour. The order is that
# of tables and legends.
_KNOWN = {
    "sgd_constant": Style("#6b6b6b", "#b4b4b4", (), "o"),
    "sgd_tenth": Style("#00946c", "#1fbf92", (5.0, 1.6), "s"),
    "sgd_cosine": Style("#0072b2", "#56b4e9", (6.0, 1.5, 1.0, 1.5), "D"),
    "sgd_plateau": Style("#b85f92", "#e29bc4", (3.0, 1.0, 1.0, 1.0, 1.0, 1.0), "v"),
    # One family: the larger the batch, the redder and the more solid.
    "hf_m256": Style("#cc8400", "#ffd58a", (1.0, 1.1), "^"),
    "hf_m1024": Style("#dd6b10", "#ffb054", (3.0, 1.2), "<"),
    "hf_m2048": Style("#c8420a", "#ff8a4c", (7.0, 1.5), ">"),
    "hf_m6144": Style("#8f1d14", "#ff5c4d", (), "P"),
    "hf_same_batch": Style("#4a2c17", "#d9b48f", (10.0, 1.5, 1.0, 1.5, 1.0, 1.5), "X"),
    "hf_equal": Style("#b57b00", "#f0b429", (1.0, 1.4), "^"),
    "hf_large": Style("#d55e00", "#ff7a33", (), "P"),
    "lbfgs": Style("#2587bd", "#8fd3ff", (8.0, 2.0, 2.0, 2.0), "h"),
    "swa": Style("#857600", "#f0e442", (5.0, 1.0, 1.0, 1.0), "*"),
}
# For all others: cycles of lengths 4, 5 and 3, so that no two of the first 60 agree in everything.
_COLORS = (("#6a51a3", "#b8a4e8"), ("#1b1b1b", "#f5f5f5"), ("#66771c", "#b9cf5a"), ("#a6604f", "#e0a08f"))
_DASHES = ((9.0, 1.5), (2.0, 1.0), (), (9.0, 1.5, 1.5, 1.5), (4.0, 2.0))
_MARKERS = ("p", "d", "H")


def in_order(strategies: Iterable[str]) -> list[str]:
    """Return the names without repetition: known strategies first, then the others in the order they come.

    >>> in_order(["adamw", "hf_m256", "sgd_constant", "adamw"])
    ['sgd_constant', 'hf_m256', 'adamw']
    """
    names = list(dict.fromkeys(strategies))
    known = [name for name in _KNOWN if name in names]
    return known + [name for name in names if name not in _KNOWN]


def styles(strategies: Iterable[str]) -> dict[str, Style]:
    """Return a style for every strategy. Known ones have their own; others take those that remain, in order."""
    found: dict[str, Style] = {}
    for name in in_order(strategies):
        found[name] = _KNOWN.get(name) or _remaining(len(found.keys() - _KNOWN.keys()))
    return found


def _remaining(number: int) -> Style:
    light, dark = _COLORS[number % len(_COLORS)]
    return Style(light, dark, _DASHES[number % len(_DASHES)], _MARKERS[number % len(_MARKERS)])


@dataclass(frozen=True)
class Look:
    """What figures look like apart from the strategies.

    Attributes:
        name: ``"light"`` or ``"dark"``.
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
