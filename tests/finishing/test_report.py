import re
import sys

import pytest
from matplotlib.figure import Figure

from latephase import FinishReport
from latephase.finishing.budget import Budget
from latephase.finishing.phase import Phase, Point

PHASES = (
    Phase("decay", True, "a trial", 0.0, 0.02, 0.02, 4, 8.0, [Point(0.02, 0.8)], "score 0.8"),
    Phase("l-bfgs", True, "a trial", 0.02, 0.02, 0.05, 2, 4.0, [Point(0.05, float("nan"))], "diverged"),
    Phase("decay", False, "expected: <b>", 0.05, 0.95, 1.0, 90, 88.0, [Point(0.5, 0.6), Point(1.0, 0.004)], "done"),
)


def report(phases=PHASES, **changes):
    settings = {"judged_by": "held-out loss", "score_before": 0.9, "score": 0.004, "best_by": "decay", "seconds": 7.0}
    budget = Budget.parse(changes.pop("budget", "20s"))
    return FinishReport(budget, **{**settings, "phases": phases, "gradients": 100.0, **changes})


def test_its_text_says_what_was_done_and_why():
    text = str(report(remarks=("something else",)))
    assert text == repr(report(remarks=("something else",)))
    assert text.splitlines() == [
        "finish: held-out loss 0.9 -> 0.004 (by decay), 7.0 s and 100 gradients of 20 s",
        "    0% tried  decay              4 steps  score 0.8",
        "    2% tried  l-bfgs             2 steps  diverged",
        "    5% chosen decay             90 steps  done",
        "       expected: <b>",
        "  note: something else",
    ]
    assert "nothing was better than the network as given" in str(report(best_by=""))


def test_decisions_and_what_was_spent():
    assert report().decisions == ["decay: expected: <b>"]
    assert report().seconds_by_phase == pytest.approx({"decay": 19.4, "l-bfgs": 0.6})


def test_the_figure_has_a_line_for_each_strategy_that_was_judged():
    figure = report().plot()
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["decay", "as given", "best"]
    curves = [line.get_xydata().tolist() for line in axes.get_lines()]
    assert [[0.5, 0.6], [1.0, 0.004]] in curves
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "share of the budget (20 s)"
    assert axes.get_ylabel() == "held-out loss"


def test_scores_of_one_size_or_below_zero_are_shown_as_they_are():
    phases = (Phase("decay", False, "", 0.0, 1.0, 1.0, 4, 8.0, [Point(1.0, -0.5)]),)
    assert report(phases, score=-0.5).plot().axes[0].get_yscale() == "linear"


def test_the_page_needs_nothing_else(tmp_path):
    page = report().to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page == report()._repr_html_()
    assert "expected: &lt;b&gt;" in page
    assert "<svg" in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert page == report().to_html()  # the same value, the same page


def test_a_finish_without_a_step_has_a_picture():
    assert "<svg" in report((), score=0.9, best_by="").to_html()


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "latephase.finishing.picture", raising=False)
    with pytest.raises(ImportError, match=r"plot needs Matplotlib: pip install 'latephase\[study\]'"):
        report().plot()
    assert "pip install" in report().to_html()
