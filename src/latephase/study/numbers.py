"""How numbers are written for people, in tables, figures and the report."""

import math

NONE = "–"  # stands where there is no number
SPENT = {"seconds": "seconds of training", "gradients": "gradients"}  # what amounts of a budget are called


def loss_text(value: float) -> str:
    """Return a loss with four significant digits.

    >>> loss_text(0.0329), loss_text(7.2e-8), loss_text(1234.5), loss_text(float("inf"))
    ('0.03290', '7.200e-08', '1234', '∞')
    """
    return _special(value) or f"{value:#.4g}".rstrip(".")


def metric_text(value: float, *, percent: bool) -> str:
    """Return a metric: as a percentage, or with three significant digits.

    >>> metric_text(0.982, percent=True), metric_text(0.00031, percent=False)
    ('98.20%', '0.000310')
    """
    if percent:
        return _special(value) or f"{100 * value:.2f}%"
    return _special(value) or f"{value:#.3g}".rstrip(".")


def amount_text(value: float, unit: str) -> str:
    """Return an amount of the budget's unit, without the unit; ∞ means never.

    >>> [amount_text(x, "seconds") for x in (0.0534, 5.42, 3600.0)], amount_text(1728.4, "gradients")
    (['0.053', '5.4', '3,600'], '1,728')
    """
    if special := _special(value):
        return special
    if unit == "gradients" or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 or value == 0 else f"{value:.2g}"


def score_text(value: float) -> str:
    """Return a score from 0 to 1 with two decimals."""
    return _special(value) or f"{value:.2f}"


def _special(value: float) -> str:
    """Return the text of a value that is not finite, and nothing for others."""
    if math.isfinite(value):
        return ""
    return NONE if math.isnan(value) else ("∞" if value > 0 else "−∞")
