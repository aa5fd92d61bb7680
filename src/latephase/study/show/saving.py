"""Figures as files."""

import io
import re
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure


def save(figure: Figure, path: Path) -> list[Path]:
    """Write the figure to ``path`` with the endings .svg and .png, always the same for the same figure; return both."""
    path.with_name(f"{path.name}.svg").write_text(svg_text(figure), encoding="utf-8")
    figure.savefig(path.with_name(f"{path.name}.png"), dpi=150, metadata={"Software": None})
    return [path.with_name(f"{path.name}{ending}") for ending in (".svg", ".png")]


def svg_text(figure: Figure) -> str:
    """Return the figure as an SVG document, the same every time: its names are not random, and it has no date."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "latephase", "path.simplify_threshold": 0.3}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # A hundredth of a point is more than can be seen, and the digits after it are most of the file.
    return re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), buffer.getvalue())
