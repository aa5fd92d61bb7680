"""The report: what it says, and that it looks right in a browser."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.image
import pandas as pd
import pytest
from tests.study import made_up
from tests.study.show.browser import CHROMIUM, Browser

from latephase.study.show.answer import answer
from latephase.study.show.report import write_report

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
VOID = {"meta", "link", "source", "img", "br"}


@pytest.fixture(scope="module")
def results():
    return made_up.results()


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(results, path, title="Late-phase <training>")
    return path


class Reader(HTMLParser):
    """Collects texts and attributes, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.addresses, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "srcset", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def test_the_page_needs_nothing_from_elsewhere(page):
    text = page.read_text(encoding="utf-8")
    reader = Reader(text)
    assert "script" not in reader.tags
    assert all(address.startswith(("data:", "#")) for address in reader.addresses)
    assert not re.search(r"https?://|url\(|@import", text)
    assert sum(tag == "picture" for tag in reader.tags) == 2 * 5


def test_the_page_says_what_was_asked_what_came_out_and_how(page, results):
    text = Reader(page.read_text(encoding="utf-8")).text
    assert text.count("Late-phase <training>") == 2  # escaped, in the title and above the page
    for _, rows in results.summary.groupby("problem"):
        assert all(sentence in text for _, sentence in answer(rows))
    for strategy in made_up.STRATEGIES:
        assert text.count(strategy) >= 6
    assert "72 runs: 8 strategies, 3 checkpoints, 3 seeds; 5.4 seconds of training each." in text
    assert "900 gradients each" in text
    assert "AMD EPYC, 2 cores cpu 3.11.7 2.13.0 0.2.0 144" in text
    assert "2 runs failed and are in none of the numbers" in text
    assert "digits_cnn, checkpoint 3, lbfgs, seed 1 RuntimeError: CUDA out of memory <while> allocating" in text
    assert "damaged run.json is not JSON" in text


def test_the_table_has_the_numbers_of_the_summary(page, results):
    text = Reader(page.read_text(encoding="utf-8")).text
    rows = results.summary
    row = rows[(rows["problem"] == "digits_cnn") & (rows["checkpoint"] == 3) & (rows["strategy"] == "hf_same_batch")]
    row = row.iloc[0]
    assert row["time_to_target"] == float("inf")
    loss = f"{row['train_loss_mean']:#.4g} {row['train_loss_q25']:#.4g} to {row['train_loss_q75']:#.4g}"
    accuracy = f"{row['test_metric_mean']:.2%} {row['test_metric_q25']:.2%} to {row['test_metric_q75']:.2%}"
    scores = " ".join(
        f"{row[f'{s}_score_mean']:.2f} {row[f'{s}_score_q25']:.2f} to {row[f'{s}_score_q75']:.2f}"
        for s in ("train", "test")
    )
    assert f"hf_same_batch {loss} {accuracy} {scores} ∞ 18 5.3 3" in text


def test_the_same_results_give_the_same_page(tmp_path):
    small = made_up.results(checkpoints=1, seeds=1, problems=("digits_cnn",))
    write_report(small, tmp_path / "a.html")
    write_report(small, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_results_without_runs_have_a_report_too(results, tmp_path):
    write_report(made_up.without(results), tmp_path / "report.html")
    text = Reader((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "There are no complete runs yet." in text
    assert "None: every run that was started is complete." in text
    nothing = replace(made_up.without(results), trainings=results.trainings.iloc[:0], curves=results.curves.iloc[:0])
    write_report(nothing, tmp_path / "report.html")


def rows_of(losses, *, higher_is_better=True, deviation=0.001, checkpoint=1, diverged=None):
    """Summary rows with these mean train losses; metrics are 1 minus them."""
    diverged = diverged or {}
    metric = {"metric": "accuracy", "higher_is_better": higher_is_better, "percent": higher_is_better}
    return pd.DataFrame(
        [
            {
                "problem": "p",
                "checkpoint": checkpoint,
                "runs": 3,
                "diverged": diverged.get(strategy, 0),
                "strategy": strategy,
                "family": made_up.family_of(strategy),
                **metric,
                "train_loss_mean": loss,
                "train_loss_std": deviation,
                "test_metric_mean": 1 - loss,
                "test_metric_std": deviation,
            }
            for strategy, loss in losses.items()
        ]
    )


def test_the_answer_where_hessian_free_wins():
    found = dict(answer(rows_of({"sgd_constant": 0.2, "sgd_tenth": 0.15, "hf_m256": 0.1})))
    assert found["Train loss"] == (
        "hf_m256 is best with 0.1000, 50.0% below the 0.2000 of sgd_constant. So Hessian-free wins here."
    )
    assert found["Test accuracy"] == (
        "hf_m256 is best with 90.00%, 10.00 points above the 80.00% of sgd_constant. So Hessian-free wins here."
    )
    assert len(found) == 2


def test_the_answer_where_hessian_free_is_in_between():
    found = dict(answer(rows_of({"sgd_constant": 0.2, "hf_m256": 0.15, "hf_large": 0.16, "sgd_tenth": 0.1})))
    assert found["Train loss"] == (
        "sgd_tenth is best with 0.1000, 50.0% below the 0.2000 of sgd_constant. "
        "Hessian-free beats sgd_constant but loses to sgd_tenth: its best, hf_m256, reaches 0.1500."
    )


def test_the_answer_where_hessian_free_loses():
    found = dict(answer(rows_of({"sgd_constant": 0.2, "hf_m256": 0.25})))
    assert found["Train loss"] == (
        "sgd_constant is best with 0.2000. Hessian-free loses here: its best, hf_m256, reaches 0.2500, "
        "25.0% above the 0.2000 of sgd_constant."
    )


def test_the_answer_says_when_a_difference_is_no_more_than_noise():
    found = dict(answer(rows_of({"sgd_constant": 0.2, "sgd_tenth": 0.199}, deviation=0.01)))
    assert found["Train loss"] == (
        "sgd_tenth is best with 0.1990, 0.5% below the 0.2000 of sgd_constant (less than seeds differ)."
    )
    found = dict(answer(rows_of({"sgd_constant": 0.2, "hf_m256": 0.199}, deviation=0.01)))
    assert found["Train loss"].endswith("of sgd_constant (less than seeds differ). That decides nothing.")


def test_the_answer_for_an_error_and_without_a_baseline():
    found = dict(answer(rows_of({"hf_m256": 0.2, "swa": 0.3}, higher_is_better=False)))
    assert found == {
        "Train loss": "hf_m256 is best with 0.2000. So Hessian-free wins here.",
        "Test accuracy": "swa is best with 0.700. Hessian-free loses: its best, hf_m256, reaches 0.800.",
    }


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        (
            {"sgd_constant": 0.2, "swa": 0.1, "hf_m256": 0.1},
            "swa and hf_m256 are equally best with 0.1000, 50.0% below",
        ),
        ({"sgd_constant": 0.2, "swa": 0.1, "hf_m256": 0.1}, "of sgd_constant. So Hessian-free wins nothing here."),
        ({"sgd_constant": 0.2, "hf_large": 0.1, "hf_m256": 0.1}, "of sgd_constant. So Hessian-free wins here."),
        (
            dict.fromkeys(["sgd_constant", "swa", "lbfgs", "hf_m256"], 0.1),
            "4 strategies, sgd_constant among them, are equally best with 0.1000. So Hessian-free wins nothing here.",
        ),
        (
            {"sgd_constant": 0.1, "swa": 0.1, "hf_m256": 0.2},
            "sgd_constant and swa are equally best with 0.1000. Hessian",
        ),
    ],
)
def test_the_answer_where_strategies_are_equal(losses, sentence):
    assert sentence in dict(answer(rows_of(losses)))["Train loss"]


def test_the_answer_counts_checkpoints():
    early = rows_of({"sgd_constant": 0.5, "hf_m256": 0.6})
    late = rows_of({"sgd_constant": 0.2, "hf_m256": 0.1}, checkpoint=2)
    found = dict(answer(pd.concat([early, late], ignore_index=True)))
    assert dict(answer(pd.concat([early, early.assign(checkpoint=2)])))["Checkpoints"].startswith("From none of 2 ")
    assert found["Checkpoints"] == (
        "From 1 of 2 checkpoints (2) the best Hessian-free strategy gets to a lower train loss than sgd_constant."
    )


def test_the_answer_says_what_diverged():
    early = rows_of({"sgd_constant": 0.5, "hf_m256": 0.6}, diverged={"sgd_constant": 3})
    late = rows_of({"sgd_constant": 0.2, "hf_m256": 0.1}, checkpoint=2, diverged={"sgd_constant": 1, "hf_m256": 2})
    assert dict(answer(pd.concat([early, late], ignore_index=True)))["Diverged"] == (
        "6 of 12 runs: sgd_constant from checkpoints 1, 2; hf_m256 from checkpoint 2. "
        "Such a run ends there; what it reached before counts."
    )


@pytest.mark.parametrize("loss", [1e298, float("nan")])
def test_the_page_survives_runs_that_diverge_and_says_so(tmp_path, loss):
    small = made_up.results(checkpoints=2, problems=("digits_cnn",))
    made = made_up.diverged(small, ["adamw(lr=0.001)", "sgd_constant"], loss)
    write_report(made, tmp_path / "report.html")
    text = Reader((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "Diverged 12 of 48 runs: sgd_constant from checkpoints 1, 2; adamw(lr=0.001) from checkpoints 1, 2." in text
    assert text.count("3 3 diverged") == 4
    assert "e+29" not in text


def test_a_failed_baseline_does_not_spoil_the_answer():
    found = dict(answer(rows_of({"sgd_constant": float("inf"), "hf_m256": 0.1})))
    assert found["Train loss"].startswith("hf_m256 is best with 0.1000, where sgd_constant has ∞.")


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_the_page_in_a_browser(page, browser, tmp_path, width, height, dark):
    browser.open(page, width=width, height=height, dark=dark)
    assert browser.errors == []
    assert browser.requests == []
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("[...document.images].every(image => image.naturalWidth > 0)")
    look = f"{'narrow' if width < 600 else 'wide'}"
    widest = browser.value("Math.max(...[...document.images].map(image => image.naturalWidth))")
    assert (widest < 400) == (look == "narrow")
    browser.screenshot(tmp_path / "page.png")
    image = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    assert image.shape[:2] == (height, width)
    assert (image.mean() < 0.3) if dark else (image.mean() > 0.7)
    assert image.std() > 0.05


@needs_browser
def test_tables_scroll_in_their_own_box_on_a_phone(page, browser):
    browser.open(page, width=390, height=844, dark=False)
    boxes = "[...document.querySelectorAll('details[open] .scroll')]"
    assert browser.value(f"{boxes}.every(box => box.scrollWidth > box.clientWidth)")
    assert browser.value(f"{boxes}.every(box => box.getBoundingClientRect().right <= innerWidth)")


@needs_browser
@pytest.mark.parametrize(
    ("change", "errors", "requests"),
    [
        ("<script>throw new Error('made to fail')</script>", "Error: made to fail", ""),
        ("<script>console.error('complained')</script>", "complained", ""),
        ("<img src='http://127.0.0.1:9/picture.png'>", "ERR_", "http://127.0.0.1:9/picture.png"),
        ("<div style='width: 3000px; height: 1px'></div>", "", ""),
    ],
    ids=["exception", "console", "request", "wide"],
)
def test_what_is_wrong_with_a_page_is_noticed(page, browser, tmp_path, change, errors, requests):
    changed = tmp_path / "changed.html"
    changed.write_text(page.read_text(encoding="utf-8").replace("</main>", f"{change}</main>"), encoding="utf-8")
    browser.open(changed, width=1280, height=900, dark=False)
    assert any(errors in error for error in browser.errors) if errors else browser.errors == []
    assert browser.requests == ([requests] if requests else [])
    assert (browser.value("document.documentElement.scrollWidth") > 1280) == ("width" in change)
