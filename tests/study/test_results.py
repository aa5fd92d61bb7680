"""What is made of curves: the table and the figure."""

import io

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from latephase.study.demo import STRATEGIES, Comparison
from latephase.study.evaluation import Point
from latephase.study.figures import draw_comparison
from latephase.study.progress import Reporter
from latephase.study.runner import Run
from latephase.study.tables import summary
from latephase.study.training import Training


def comparison(seeds=2):
    def run(name, seed):
        end = Point(1.5, 40 + seed, 0.2 + 0.1 * seed, 0.0, 0.91 + 0.02 * seed)
        return Run(name, seed, (Point(0, 0, 0.5, 0, 0.9), end))

    training = Training((Point(0, 0, 2.0, 0, 0.1), Point(19, 90, 0.6, 0, 0.8), Point(20, 100, 0.5, 0, 0.9)), {})
    return Comparison(training, 2.0, tuple(run(s.name, seed) for seed in range(seeds) for s in STRATEGIES))


def text_of(table):
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return console.file.getvalue()


def row(text, name):
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def test_the_table_gives_mean_and_standard_deviation_over_seeds():
    text = text_of(summary(comparison()))
    assert row(text, "checkpoint") == ["checkpoint", "0.50000", "90.00%", "100", "20.0"]
    for strategy in STRATEGIES:
        loss = ["0.25000", "±", "0.07071"]  # √½ of the difference between two values
        accuracy = ["92.00", "±", "1.41%"]
        assert row(text, strategy.name) == [strategy.name, *loss, *accuracy, "40", "1.5"]
    assert "2.0 s of training time each; mean ± standard deviation over 2 seeds" in " ".join(text.split())


def test_a_single_seed_has_no_deviation():
    assert row(text_of(summary(comparison(seeds=1))), "hf_large") == ["hf_large", "0.20000", "91.00%", "40", "1.5"]


@pytest.fixture
def axes(monkeypatch, tmp_path):
    """The figure's panels, caught when it is saved."""
    caught = []
    monkeypatch.setattr("latephase.study.figures.Figure.savefig", lambda self, *_, **__: caught.append(self))
    draw_comparison(comparison(), tmp_path / "figure.png", title="title")
    return caught[0].axes


def test_the_figure_draws_the_mean_of_every_strategy(axes):
    for panel, middle, end in zip(axes, (0.375, 0.91), (0.25, 0.92), strict=True):
        lines = {line.get_label(): line for line in panel.get_lines()}
        for strategy in STRATEGIES:
            seconds, values = lines[strategy.name].get_data()
            assert (seconds[0], seconds[-1]) == (0.0, 2.0)
            assert np.interp(0.75, seconds, values) == pytest.approx(middle, rel=1e-3)
            assert values[-1] == pytest.approx(end)


def test_the_figure_draws_the_end_of_the_training_before_the_checkpoint(axes):
    before = axes[0].get_lines()[0]
    assert before.get_xdata().tolist() == [-1.0, 0.0]
    assert before.get_ydata().tolist() == [0.6, 0.5]


def test_no_two_strategies_look_alike(axes):
    lines = [line for line in axes[0].get_lines() if not line.get_label().startswith("_")]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(STRATEGIES) == 5


def test_the_figure_is_written_as_an_image(tmp_path):
    draw_comparison(comparison(), tmp_path / "figure.png", title="title")
    image = matplotlib.image.imread(tmp_path / "figure.png")
    assert image.shape[1] > image.shape[0] > 300
    assert image.std() > 0.05


@pytest.mark.parametrize(
    ("terminal", "quiet", "shown"), [(True, False, "100%"), (False, False, "a task: loss 0.5\n"), (True, True, "")]
)
def test_progress_is_a_bar_on_a_terminal_and_a_line_elsewhere(terminal, quiet, shown):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with Reporter(console, quiet=quiet).task("a task") as progress:
        progress(0.5, "loss 0.9")
        progress(1.0, "loss 0.5")
    text = console.file.getvalue()
    assert (shown in text) if shown else (text == "")
    assert ("\x1b[" in text) == (terminal and not quiet)
