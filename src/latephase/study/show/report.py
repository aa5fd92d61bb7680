"""The report: one HTML page that says what was asked, what came out, and how."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from latephase.study.analysis.results import Results
from latephase.study.analysis.scores import BASELINE, training_names
from latephase.study.numbers import NONE, SPENT, amount_text, loss_text, metric_text, score_text
from latephase.study.show import figures
from latephase.study.show.answer import answer, winners
from latephase.study.show.saving import svg_text
from latephase.study.show.styles import DARK, LIGHT, Look, styles

_LOOKS = {
    "wide_light": LIGHT,
    "wide_dark": DARK,
    "narrow_light": replace(LIGHT, narrow=True),
    "narrow_dark": replace(DARK, narrow=True),
}
_PIXELS_PER_INCH = 96  # of CSS


def write_report(results: Results, path: Path, *, title: str = "Late-phase training") -> None:
    """Write the report to `path`: one file that needs no other and no network."""
    template = files("latephase.study.show").joinpath("report.html.j2").read_text(encoding="utf-8")
    looks = styles(results.runs["strategy"])
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        title=title,
        light=LIGHT,
        dark=DARK,
        baseline=BASELINE,
        sections=list(_sections(results)),
        styles=looks,
        numbers={name: number for number, name in enumerate(looks, start=1)},  # of the colours, in the style sheet
        trainings=[_training(results, *training) for training in training_names(results.trainings).items()],
        machines=results.machines.astype(object).where(results.machines.notna(), NONE).to_dict("records"),
        failures=[_failure(row) for row in results.failures.to_dict("records")],
    )
    path.write_text(page, encoding="utf-8")


@dataclass(frozen=True)
class _Picture:
    """A figure in all its looks.

    Attributes:
        caption: What it shows.
        sources: Data URIs.
        wide: Width and height in CSS pixels.
        narrow: The same on a phone.
    """

    caption: str
    sources: dict[str, str]
    wide: tuple[int, int]
    narrow: tuple[int, int]


def _sections(results: Results) -> Iterator[dict[str, object]]:
    """Yield what is shown of each problem."""
    if results.runs.empty:
        return
    rows, runs = results.summary, results.best
    for name in dict.fromkeys(rows["problem"]):
        own = rows[rows["problem"] == name]
        first = own.iloc[0]
        yield {
            "name": name,
            "metric": first["metric"],
            "unit": SPENT[first["unit"]],
            "budget": _budget(runs[runs["problem"] == name]),
            "runs": int(own["runs"].sum()),
            "seeds": runs[runs["problem"] == name]["seed"].nunique(),
            "strategies": own["strategy"].nunique(),
            "last": int(own["checkpoint"].max()),
            "answer": answer(own),
            "pictures": list(_pictures(results, name, own)),
            "tables": [_score_table(int(n), group) for n, group in own.groupby("checkpoint", sort=True)][::-1],
        }


def _budget(runs: pd.DataFrame) -> str:
    unit = runs["unit"].iloc[0]
    ends = dict.fromkeys(amount_text(value, unit) for value in (runs["budget"].min(), runs["budget"].max()))
    return f"{' to '.join(ends)} {SPENT[unit]}"


def _pictures(results: Results, problem: str, rows: pd.DataFrame) -> Iterator[_Picture]:
    """Yield the problem's figures. Those that would show the same again are left out."""
    for name, caption in _CAPTIONS.items():
        if name == "figure5" and set(rows["strategy"]) == {BASELINE, *figures.compared(rows)}:
            continue  # Figure 1 shows all of them
        drawn = {key: _draw(results, name, problem, look) for key, look in _LOOKS.items()}
        made = {key: figure for key, figure in drawn.items() if figure is not None}
        if made:
            sources = {key: _data_uri(svg_text(figure)) for key, figure in made.items()}
            text = caption.format(metric=rows["metric"].iloc[0])
            yield _Picture(text, sources, _pixels(made["wide_light"]), _pixels(made["narrow_light"]))


def _draw(results: Results, name: str, problem: str, look: Look) -> Figure | None:
    return figures.FIGURES[name](results, problem=problem, look=look)


_CAPTIONS = {
    "figure2": (
        "From the last checkpoint: train loss, test {metric} and learning rate over the budget. Lines are means over "
        "seeds, bands reach from the lower to the upper quartile; learning rates have a line for each seed."
    ),
    "figure1": (
        "SGD as before and Hessian-free from every checkpoint: scores from 0 (worst) to 1 (best of all runs from the "
        "checkpoint) of the best train loss (first) and test {metric} (second). Means and quartiles over seeds."
    ),
    "figure5": "The same for all strategies.",
    "figure3": (
        "Loss on the evaluation batch B̄ before and after each Hessian-free step, a line for each seed. First B̄ is the "
        "batch that proposed the step, so a step cannot help looking good; second it is other data."
    ),
    "figure4": "The training, and where its checkpoints were taken. Train loss includes the L2 term.",
}


def _pixels(figure: Figure) -> tuple[int, int]:
    width, height = figure.get_size_inches() * _PIXELS_PER_INCH
    return round(width), round(height)


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _score_table(checkpoint: int, rows: pd.DataFrame) -> dict[str, object]:
    """Return a checkpoint's table, with the best mean of each column marked."""
    indexed = rows.set_index("strategy", drop=False)
    ahead = {quantity: winners(indexed, quantity) for quantity in ("train_loss", "test_metric")}
    fastest = rows["time_to_target"].min()
    lines = []
    for _, row in rows.iterrows():
        unit, percent = row["unit"], bool(row["percent"])
        loss = [loss_text(row[f"train_loss_{part}"]) for part in ("mean", "q25", "q75")]
        metric = [metric_text(row[f"test_metric_{part}"], percent=percent) for part in ("mean", "q25", "q75")]
        lines.append(
            {
                "strategy": row["strategy"],
                "runs": row["runs"],
                "diverged": row["diverged"],
                "loss": (loss, row["strategy"] in ahead["train_loss"]),
                "metric": (metric, row["strategy"] in ahead["test_metric"]),
                "scores": [[score_text(row[f"{s}_score_{part}"]) for part in _PARTS] for s in ("train", "test")],
                "time": (amount_text(row["time_to_target"], unit), row["time_to_target"] == fastest < float("inf")),
                "steps": f"{row['steps']:,.0f}",
                "spent": amount_text(row["spent"], unit),
            }
        )
    first = rows.iloc[0]
    start = (
        loss_text(first["start_train_loss"]),
        metric_text(first["start_test_metric"], percent=bool(first["percent"])),
    )
    return {"checkpoint": checkpoint, "lines": lines, "start": start, "target": loss_text(first["target"])}


_PARTS = ("mean", "q25", "q75")


def _training(results: Results, training: object, name: str) -> dict[str, object]:
    """Return a training's settings and how it ended."""
    row = results.trainings.loc[training]
    curve = results.curves[results.curves["id"] == training]
    end = curve.iloc[-1] if len(curve) else None
    return {
        "problem": name,
        "seed": row["seed"],
        "epochs": row["epochs"],
        "steps": f"{row['steps']:,}",
        "seconds": amount_text(row["seconds"], "seconds"),
        "checkpoints": len(row["checkpoints"]),
        "lr": f"{row['lr']:g}",
        "batch_size": f"{row['batch_size']}" + (f" × {row['processes']}" if row["processes"] > 1 else ""),
        "weight_decay": f"{row['weight_decay']:g}",
        "train_loss": NONE if end is None else loss_text(end["train_loss"]),
        "test_metric": NONE if end is None else metric_text(end["test_metric"], percent=bool(row["percent"])),
    }


def _failure(row: dict[str, object]) -> dict[str, str]:
    """Return what is known of a run that failed."""
    names = ("problem", "checkpoint", "strategy", "seed")
    known = {name: row[name] for name in names if name in row and not pd.isna(row[name])}
    numbers = {name: f"{name} {known[name]:.0f}" for name in ("checkpoint", "seed") if name in known}
    return {"id": str(row["id"]), "what": ", ".join(map(str, (known | numbers).values())), "error": str(row["error"])}
