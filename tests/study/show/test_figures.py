"""Figures: what they show is read back from their axes."""

import re
from dataclasses import replace
from itertools import pairwise

import matplotlib.image
import numpy as np
import pytest
from tests.study import made_up

from latephase.study.show import figures
from latephase.study.show.panels import over_seeds
from latephase.study.show.saving import save
from latephase.study.show.styles import DARK, LIGHT, styles
from latephase.study.strategies.order import in_order

EVERY = list(figures.FIGURES)


@pytest.fixture(scope="module")
def results():
    return made_up.results()


def lines(axes):
    """The lines that a legend shows, by their labels."""
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_figure_1_shows_the_scores_of_sgd_and_hessian_free(results):
    figure = figures.figure1(results)
    assert titles(figure)[:2] == ["digits_cnn: best train loss", "digits_cnn: best test accuracy"]
    rows = results.summary
    for axes, problem, score in zip(
        figure.axes, np.repeat(["digits_cnn", "poisson_pinn"], 2), ["train_score", "test_score"] * 2, strict=True
    ):
        assert set(lines(axes)) == {"sgd_constant", "hf_m256", "hf_m6144"}
        for name, line in lines(axes).items():
            own = rows[(rows["problem"] == problem) & (rows["strategy"] == name)]
            assert np.round(line.get_xdata()).tolist() == [1, 2, 3]
            assert line.get_ydata().tolist() == own[f"{score}_mean"].tolist()


def test_figure_5_shows_all_strategies_beside_each_other(results):
    for axes in figures.figure5(results).axes:
        assert list(lines(axes)) == list(made_up.STRATEGIES)
        places = [line.get_xdata()[0] for line in lines(axes).values()]
        assert len({*places}) == len(places)
        assert max(abs(x - 1) for x in places) < 0.5


def test_figure_2_shows_means_over_seeds_from_the_last_checkpoint(results):
    loss, metric, rate = figures.figure2(results, problem="digits_cnn").axes
    assert [axes.get_title(loc="left") for axes in (loss, metric, rate)] == [
        "train loss",
        "test accuracy",
        "learning rate",
    ]
    runs = results.runs[(results.runs["checkpoint"] == 3) & (results.runs["strategy"] == "sgd_cosine")]
    own = results.curves[results.curves["id"].isin(runs.index[runs["problem"] == "digits_cnn"])]
    for axes, quantity in ((loss, "train_loss"), (metric, "test_metric")):
        x, y = lines(axes)["sgd_cosine"].get_data()
        assert (x[0], x[-1]) == (0.0, 5.4)
        middle = own[np.isclose(own["seconds"], 2.7)]
        assert np.interp(2.7, x, y) == pytest.approx(middle[quantity].mean())
        assert axes.get_xlabel() == "seconds since the checkpoint"
    assert list(lines(rate)) == ["sgd_constant", "sgd_tenth", "sgd_cosine", "sgd_plateau"]
    assert rate.get_yscale() == "log"
    assert len(rate.get_lines()) == 4 * 3  # one for each seed


def test_the_band_reaches_from_quartile_to_quartile():
    x = np.array([0.0, 2.0])
    places, mean, low, high = over_seeds([(x, x * slope) for slope in (0.0, 1.0, 5.0)], 4.0, (0.25, 0.75))
    assert places.tolist() == [0, 2, 4]
    assert mean.tolist() == [0, 4, 4]  # a curve keeps its last value
    assert low.tolist() == [0, 1, 1]
    assert high.tolist() == [0, 6, 6]


def test_a_mean_ends_where_a_seed_is_not_finite_any_more():
    x = np.array([0.0, 1.0, 2.0])
    curves = [(x, np.array([1.0, 1.0, 1.0])), (x, np.array([1.0, np.inf, np.nan]))]
    _, mean, low, high = over_seeds(curves, 2.0, (0.25, 0.75))
    for values in (mean, low, high):
        assert values[0] == 1.0
        assert np.isnan(values[1:]).all()


def test_the_panel_shows_the_gain_though_a_strategy_fails(results):
    loss, *_ = figures.figure6(results, problem="digits_cnn").axes
    start = lines(loss)["sgd_cosine"].get_ydata()[0]
    best = lines(loss)["sgd_cosine"].get_ydata().min()
    low, high = loss.get_ylim()
    assert low < best < start < high
    assert lines(loss)["hf_same_batch"].get_ydata().max() > high
    assert (start - best) / (high - low) > 0.3


FIRST_ORDER = [name for name in made_up.STRATEGIES if name.startswith(("sgd", "adamw"))]


@pytest.mark.parametrize("loss", [1e298, -1e298, np.inf])
@pytest.mark.parametrize("names", [["adamw(lr=0.001)"], FIRST_ORDER], ids=["one", "most"])
def test_runs_that_diverge_do_not_press_the_others_into_a_line(results, loss, names):
    made = made_up.diverged(results, names, loss)
    for problem in made_up.PROBLEMS:
        for panel, usual in zip(*(figures.figure6(r, problem=problem).axes for r in (made, results)), strict=True):
            y = lines(panel)["hf_m6144"].get_ydata()
            assert y.tolist() == lines(usual)["hf_m6144"].get_ydata().tolist()
            low, high = panel.get_ylim()
            assert low < y.min() < y.max() < high
            assert abs(y[0] - y[-1]) / (high - low) > 0.1


def test_a_line_ends_in_a_cross_where_its_strategy_diverges(results):
    made = made_up.diverged(results, ["adamw(lr=0.001)"])
    for draw in (figures.figure6, figures.demo_figure):
        figure = draw(made) if draw is figures.demo_figure else draw(made, problem="digits_cnn")
        for axes in figure.axes[:2]:
            line = lines(axes)["adamw(lr=0.001)"]
            x, y = line.get_data()
            last = np.flatnonzero(np.isfinite(y))[-1]
            assert x[last] == pytest.approx(5.4 * 9 / 20)
            crosses = [other for other in axes.get_lines() if other.get_marker() == "x" and len(other.get_xdata())]
            (cross,) = crosses
            low, high = axes.get_ylim()
            assert cross.get_xdata().tolist() == [x[last]]
            assert cross.get_ydata().tolist() == [np.clip(y[last], low, high)]
            assert (y[last] > high) == (axes is figure.axes[0])
            assert cross.get_color() == line.get_color()
        assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "diverged"
    assert "diverged" not in lines(figures.figure6(results, problem="digits_cnn").axes[0])


def test_a_metric_that_is_nowhere_defined_is_no_divergence(results):
    curves = results.curves.assign(test_metric=np.nan)
    figure = figures.figure6(replace(results, curves=curves), problem="digits_cnn")
    assert all(line.get_marker() != "x" for axes in figure.axes for line in axes.get_lines())


def test_a_training_that_diverged_does_not_press_the_rest_into_a_line(results):
    training = results.curves["id"] == "digits_cnn-0"
    curves = results.curves.copy()
    curves.loc[curves.index[training][-1], "train_loss"] = 1e298
    loss = figures.figure4(replace(results, curves=curves), problem="digits_cnn").axes[0]
    assert loss.get_ylim()[1] < 100


def test_steps_at_an_absurd_loss_do_not_press_the_others_into_a_line(results):
    steps = results.steps.copy()
    (one,) = steps.index[(steps["id"] == "digits_cnn-0-c3-hf_same_batch-0") & (steps["step"] == 18)]
    steps.loc[one, ["loss_before", "loss_after"]] = 1e298
    assert figures.figure3(replace(results, steps=steps)).axes[0].get_ylim()[1] < 100


def test_figure_7_is_about_strategies_with_a_learning_rate(results):
    (axes,) = figures.figure7(results, problem="poisson_pinn").axes
    assert list(lines(axes)) == ["sgd_constant", "sgd_tenth", "sgd_cosine", "sgd_plateau"]
    assert axes.get_xlabel() == "gradients since the checkpoint"
    assert figures.figure7(made_up.results(strategies=("hf_m256",))) is None


def test_figure_3_compares_the_same_batch_with_a_disjoint_one(results):
    same, disjoint, *_ = figures.figure3(results).axes
    assert titles(figures.figure3(results))[:2] == [
        "digits_cnn: same batch (hf_same_batch)",
        "digits_cnn: disjoint (hf_m6144)",
    ]
    assert same.get_ylim() == disjoint.get_ylim()
    for axes, strategy in ((same, "hf_same_batch"), (disjoint, "hf_m6144")):
        steps = results.steps[results.steps["id"] == f"digits_cnn-0-c3-{strategy}-0"]
        assert lines(axes)["before the step"].get_ydata().tolist() == steps["loss_before"].tolist()
        assert lines(axes)["after the step"].get_ydata().tolist() == steps["loss_after"].tolist()
        assert len(axes.get_lines()) == 2 * 3


def test_figure_3_takes_the_largest_batch_there_is():
    made = made_up.results(strategies=("hf_same_batch", "hf_m256", "hf_m1024"), problems=("digits_cnn",))
    assert titles(figures.figure3(made))[1] == "disjoint (hf_m1024)"


def test_figure_4_marks_the_checkpoints(results):
    loss, accuracy, *_ = figures.figure4(results).axes
    for axes in (loss, accuracy):
        marks = [line for line in axes.get_lines() if line.get_marker() == "o" and len(line.get_xdata())]
        assert [list(line.get_xdata()) for line in marks] == [[18.0, 36.0, 54.0]] * 2
        assert set(lines(axes)) == {"train", "test", "checkpoint"}
    assert loss.get_yscale() == "log"
    assert accuracy.get_yscale() == "linear"
    assert accuracy.yaxis.get_major_formatter()(0.975, None) == "97.5%"


def test_the_demo_shows_the_end_of_the_training_before_the_checkpoint(results):
    figure = figures.demo_figure(made_up.results(problems=("digits_cnn",)))
    assert figure.get_suptitle() == "digits_cnn: 8 ways to spend the same seconds after SGD"
    loss, _ = figure.axes
    x, y = next(line for line in loss.get_lines() if line.get_label().startswith("_")).get_data()
    assert (x[0], x[-1]) == (pytest.approx(-5.4, abs=1e-9), 0.0)
    training = results.curves[results.curves["id"] == "digits_cnn-0"]
    assert y[-1] == training["train_loss"].iloc[-1]
    assert loss.get_xlim() == (-5.4, 5.4)
    assert loss.get_ylim()[1] > y.max()


@pytest.mark.parametrize("name", EVERY)
def test_figures_are_left_out_where_something_is_missing(name):
    nothing = made_up.without(made_up.results())
    assert (figures.FIGURES[name](nothing) is None) == (name != "figure4")
    one = made_up.results(checkpoints=1, strategies=("sgd_constant", "hf_m256"))
    assert (figures.FIGURES[name](one) is None) == (name in ("figure1", "figure3", "figure5"))


def test_without_runs_there_is_no_demo():
    assert figures.demo_figure(made_up.without(made_up.results())) is None


def test_no_two_strategies_look_alike():
    names = [*made_up.STRATEGIES, "hf_m1024", "hf_m2048", "hf_equal", "hf_large", "lbfgs", "swa"]
    names += [f"optimizer{n}" for n in range(19)]
    found = styles(names)
    assert list(found) == in_order(names)
    for look in (LIGHT, DARK):
        assert len({(look.color(style), style.dashes) for style in found.values()}) == len(names)


@pytest.mark.parametrize("look", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stand_out_from_the_ground(look):
    """WCAG 2.2: at least 4.5 : 1 for text, 3 : 1 for graphics."""
    for color in (look.text, look.quiet):
        assert contrast(color, look.paper) >= 4.5
    for name, style in styles([*made_up.STRATEGIES, "hf_equal", "hf_large", "swa", "lbfgs", *"abcd"]).items():
        assert contrast(look.color(style), look.paper) >= 3, name
    assert min(contrast(look.train, look.paper), contrast(look.test, look.paper)) >= 3


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_narrow_figure_has_its_panels_below_each_other(results):
    figure = figures.figure2(results, problem="digits_cnn", look=replace(LIGHT, narrow=True))
    figure.draw_without_rendering()
    boxes = [axes.get_position() for axes in figure.axes]
    assert all(upper.y0 > lower.y1 for upper, lower in pairwise(boxes))
    assert figure.get_figwidth() < 4


def test_long_names_stay_inside_the_figure():
    names = [f"adamw(lr=0.00{n}, schedule=cosine)" for n in range(5)]
    for look in (LIGHT, replace(LIGHT, narrow=True)):
        figure = figures.figure6(made_up.results(strategies=names, problems=("digits_cnn",)), look=look)
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1


def test_saved_figures_are_the_same_every_time(results, tmp_path):
    made = [save(figures.figure2(results), tmp_path / name) for name in ("a.1", "b")]
    assert [path.name for path in made[0]] == ["a.1.svg", "a.1.png"]
    for one, other in zip(*made, strict=True):
        assert one.read_bytes() == other.read_bytes()
    svg = made[0][0].read_text()
    assert "<dc:date>" not in svg
    assert not re.search(r"\bhttps?://(?!www\.w3\.org|purl\.org|creativecommons\.org)", svg.split("<svg", 1)[1])
    image = matplotlib.image.imread(made[0][1])
    assert image.shape[1] > image.shape[0] > 300
    assert image[..., :3].std() > 0.05


def test_all_figures_of_the_paper_are_written(results, tmp_path):
    written = figures.save_all(results, tmp_path)
    assert {path.name for path in written} == {f"figure{n}.{ending}" for n in range(1, 8) for ending in ("svg", "png")}
    assert all(path.stat().st_size > 5000 for path in written)
