"""What a strategy is drawn with, in light and in dark, on a screen and in grey print."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """What a strategy is drawn with.

    The hues of the package's strategies are those of Okabe and Ito's palette, which colour-blind readers can tell
    apart, made darker or lighter where they would have less than 3 : 1 of contrast with the ground. Dashes and markers
    are for print without colour.

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
    def linestyle(self) -> str | tuple[int, tuple[float, ...]]:
        """What Matplotlib calls the dashes."""
        return (0, self.dashes) if self.dashes else "-"
