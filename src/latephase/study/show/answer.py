"""What came out, in sentences: which strategy is best, and where Hessian-free stands, plainly where it loses."""

from math import isfinite

import pandas as pd

from latephase.strategies.strategy import Family
from latephase.study.analysis.scores import BASELINE
from latephase.study.numbers import loss_text, metric_text


def answer(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what came out for one problem: sentences, each with what it is about.

    Args:
        rows: Those of `scores.summary` for the problem.
    """
    last = rows[rows["checkpoint"] == rows["checkpoint"].max()].set_index("strategy")
    found = {
        "Train loss": _compared(last, "train_loss"),
        f"Test {last['metric'].iloc[0]}": _compared(last, "test_metric"),
        "Checkpoints": _over_checkpoints(rows),
        "Diverged": _diverged(rows),
    }
    return [(about, sentence) for about, sentence in found.items() if sentence]


def _compared(last: pd.DataFrame, quantity: str) -> str:
    """Say which strategy is best from the last checkpoint, and where Hessian-free stands: plainly where it loses."""
    ahead = winners(last, quantity)
    sentence = f"{_listed(ahead)} best with {_value(last, ahead[0], quantity)}"
    if BASELINE in last.index and BASELINE not in ahead:
        sentence += f", {_against(last, ahead[0], quantity)}"
    own = _hessian_free(last)
    if own.empty:
        return f"{sentence}."
    name = winners(own, quantity)[0]
    if BASELINE in last.index and BASELINE not in ahead and _in_doubt(last, ahead[0], quantity):
        return f"{sentence}. That decides nothing."
    if name in ahead:
        wins = set(ahead) <= set(own.index)
        return f"{sentence}. " + ("So Hessian-free wins here." if wins else "So Hessian-free wins nothing here.")
    reached = f"its best, {name}, reaches {_value(last, name, quantity)}"
    if BASELINE not in last.index:
        return f"{sentence}. Hessian-free loses: {reached}."
    if BASELINE not in ahead and winners(last.loc[[BASELINE, name]], quantity) == [name]:
        return f"{sentence}. Hessian-free beats {BASELINE} but loses to {ahead[0]}: {reached}."
    return f"{sentence}. Hessian-free loses here: {reached}, {_against(last, name, quantity)}."


def _listed(names: list[str]) -> str:
    """Return the names with their verb, or how many there are if they are many."""
    if len(names) == 1:
        return f"{names[0]} is"
    if len(names) <= 3:
        return f"{', '.join(names[:-1])} and {names[-1]} are equally"
    return f"{len(names)} strategies{f', {BASELINE} among them,' if BASELINE in names else ''} are equally"


def _over_checkpoints(rows: pd.DataFrame) -> str:
    """Count the checkpoints from which the best Hessian-free strategy beats the baseline."""
    own = _hessian_free(rows).groupby("checkpoint")["train_loss_mean"].min()
    baseline = rows[rows["strategy"] == BASELINE].set_index("checkpoint")["train_loss_mean"]
    both = [number for number in own.index if number in baseline.index]
    if len(both) < 2:
        return ""
    ahead = [str(number) for number in both if own[number] < baseline[number]]
    which = f" ({', '.join(ahead)})" if 0 < len(ahead) < len(both) else ""
    return (
        f"From {len(ahead) or 'none'} of {len(both)} checkpoints{which} the best Hessian-free strategy gets to a lower "
        f"train loss than {BASELINE}."
    )


def _diverged(rows: pd.DataFrame) -> str:
    """Say which runs diverged, from all checkpoints."""
    gone = rows[rows["diverged"] > 0]
    if gone.empty:
        return ""
    names = [f"{name} from {_checkpoints(own['checkpoint'])}" for name, own in gone.groupby("strategy", sort=False)]
    count = f"{gone['diverged'].sum()} of {rows['runs'].sum()} runs"
    return f"{count}: {'; '.join(names)}. Such a run ends there; what it reached before counts."


def _checkpoints(numbers: pd.Series) -> str:
    return f"checkpoint{'s' if len(numbers) > 1 else ''} {', '.join(str(number) for number in numbers)}"


def _hessian_free(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["family"] == Family.HESSIAN_FREE.value]


def winners(rows: pd.DataFrame, quantity: str) -> list[str]:
    """Return the strategies with the best mean; several if they are equal."""
    lower = quantity == "train_loss" or not rows["higher_is_better"].iloc[0]
    means = rows[f"{quantity}_mean"]
    return [str(name) for name in means.index[means == (means.min() if lower else means.max())]]


def _value(rows: pd.DataFrame, name: str, quantity: str) -> str:
    value = rows.loc[name, f"{quantity}_mean"]
    return loss_text(value) if quantity == "train_loss" else metric_text(value, percent=bool(rows.loc[name, "percent"]))


def _against(rows: pd.DataFrame, name: str, quantity: str) -> str:
    """Return by how much the strategy is above or below the baseline, and whether that is more than seeds differ."""
    value, base = rows.loc[name, f"{quantity}_mean"], rows.loc[BASELINE, f"{quantity}_mean"]
    if not (isfinite(value) and isfinite(base)):
        return f"where {BASELINE} has {_value(rows, BASELINE, quantity)}"
    if value == base:
        return f"the same as {BASELINE}"
    side = "above" if value > base else "below"
    if quantity == "test_metric" and rows.loc[name, "percent"]:
        size = f"{100 * abs(value - base):.2f} points"
    else:
        size = f"{abs(value / base - 1):.1%}" if base else loss_text(abs(value))
    doubt = " (less than seeds differ)" if _in_doubt(rows, name, quantity) else ""
    return f"{size} {side} the {_value(rows, BASELINE, quantity)} of {BASELINE}{doubt}"


def _in_doubt(rows: pd.DataFrame, name: str, quantity: str) -> bool:
    """Whether the strategy and the baseline differ by less than their seeds do."""
    both = rows.loc[[name, BASELINE]]
    means = both[f"{quantity}_mean"]
    return bool(0 < means.max() - means.min() < both[f"{quantity}_std"].max())
