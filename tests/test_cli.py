import re
import sys

import matplotlib.image
import pytest
from typer.testing import CliRunner

from latephase.__main__ import main
from latephase.cli import DEMO_STRATEGIES, app
from latephase.study.analysis.results import load_results
from latephase.study.problems import PROBLEMS
from latephase.study.runs import experiments
from latephase.study.runs.experiments import Place, perform
from latephase.study.runs.plan import plan_training
from latephase.study.runs.store import Store
from tests.study.toy import REFERENCE


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def words(text):
    """The text of an error message without the frame around it."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def test_study_is_train_resume_and_report_in_a_row(tmp_path):
    options = ["--strategies", "sgd_cosine,hf_m12", "--seeds", 2, "--budget", "20gradients"]
    result = invoke("study", REFERENCE, "--out", tmp_path / "a", "--checkpoint", "last", *options)
    assert result.exit_code == 0, result.output
    assert "4/4 hf_m12, checkpoint 2, seed 1: complete" in result.output
    assert f"report: {tmp_path / 'a' / 'report.html'}" in result.output

    assert invoke("train", REFERENCE, "--out", tmp_path / "b").exit_code == 0
    assert invoke("resume", tmp_path / "b", *options).exit_code == 0
    result = invoke("report", tmp_path / "b", "--to", tmp_path / "c")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "c" / "report.html").stat().st_size > 10_000
    figures = {path.name for path in (tmp_path / "c" / "figures").iterdir()}
    assert figures >= {"figure2.svg", "figure2.png", "figure4.svg"}

    one, other = (load_results(Store(tmp_path / name)) for name in "ab")
    assert sorted(one.runs.index) == sorted(other.runs.index)
    assert one.curves.drop(columns="seconds").equals(other.curves.drop(columns="seconds"))


def test_a_second_time_only_what_is_missing_is_done(tmp_path):
    first = ["study", REFERENCE, "--out", tmp_path, "--budget", "9gradients", "--strategies", "sgd_tenth"]
    assert invoke(*first, "--seeds", 1).exit_code == 0
    result = invoke(*first, "--seeds", 2, "--checkpoint", 2)
    assert "1/1 sgd_tenth, checkpoint 2, seed 1: complete" in result.output
    assert "training" not in result.output


def test_demo_end_to_end(tmp_path):
    out = tmp_path / "a" / "b"
    result = invoke("demo", "--epochs", 1, "--budget", "0.05s", "--seed", 5, "--seeds", 2, "--out", out)
    assert result.exit_code == 0, result.output
    for name in DEMO_STRATEGIES.split(","):
        assert f"{name}, checkpoint 1, seed 1: complete" in result.output
        assert re.search(rf"^ *{name} +\d.*$", result.output, re.MULTILINE)
    assert f"figure: {out / 'demo.png'}" in result.output
    assert matplotlib.image.imread(out / "demo.png").std() > 0.05
    seconds = load_results(Store(out)).curves.groupby("id")["seconds"].max()
    assert (seconds.drop(load_results(Store(out)).trainings.index) <= 0.05).all()


def test_quiet_shows_results_only(tmp_path):
    result = invoke("demo", "--epochs", 1, "--budget", "0.02s", "--seeds", 1, "--out", tmp_path, "--quiet")
    assert result.exit_code == 0, result.output
    assert "complete" not in result.output
    assert "hf_large" in result.output


def test_problems_and_their_settings_are_listed():
    for command in ("problems", "table1"):
        result = CliRunner().invoke(app, [command], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        assert all(name in result.output for name in PROBLEMS)
    assert "0.171234" in result.output


def test_a_run_that_fails_makes_the_command_fail(tmp_path):
    result = invoke(
        "study", REFERENCE, "--out", tmp_path, "--strategies", "sgd_tenth,hf_large,adagrad", "--seeds", 1,
        "--checkpoint", "last", "--budget", "50gradients",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    too_many = REFERENCE.replace("toy.py:build", "greedy.py:build")
    result = invoke("study", too_many, "--out", tmp_path, "--strategies", "hf_large", "--seeds", 1)
    assert result.exit_code == 1
    assert "cannot be drawn from 60 examples" in result.output


UNFIT = """
from dataclasses import replace

from tests.study.toy import TOY, build_model, load_data


def batch():
    return replace(TOY, batch_size=61)


def test():
    data = load_data()
    return replace(TOY, load_data=lambda folder: replace(data, test=data.test.take(slice(0))))


def frozen():
    return replace(TOY, build_model=lambda: build_model().requires_grad_(False))


def rate():
    return replace(TOY, lr=float("inf"))


def diverging():
    return replace(TOY, name="steep", loss=lambda outputs, targets: 0.5 * outputs.square().mean(), lr=1e3)


def diverging_later():
    return replace(diverging(), lr=0.01)
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("batch", "PROBLEM: batch_size of 'toy' must be from 1 to 60, the number of training examples, not 61"),
        ("test", "PROBLEM: test of the data of 'toy' must have at least one example, not 0"),
        ("frozen", "PROBLEM: build_model of 'toy' must return a network with a parameter to train"),
        ("rate", "PROBLEM: lr must be ≥ 0 and finite, not inf"),
    ],
)
def test_a_problem_that_cannot_be_studied_is_refused_before_training(tmp_path, function, message):
    (tmp_path / "unfit.py").write_text(UNFIT)
    result = invoke("study", f"{tmp_path / 'unfit.py'}:{function}", "--out", tmp_path / "runs")
    assert result.exit_code == 2, result.output
    assert message in words(result.output)
    assert not (tmp_path / "runs").exists()


def test_a_problem_that_became_unfit_is_refused_when_a_training_is_resumed(tmp_path, monkeypatch):
    """By a change not of its file, but of what that imports."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own.py").write_text("from what_it_imports import build")
    (tmp_path / "what_it_imports.py").write_text("from tests.study.toy import build")
    assert invoke("train", f"{tmp_path / 'own.py'}:build", "--out", tmp_path / "runs").exit_code == 0
    (tmp_path / "what_it_imports.py").write_text(f"{UNFIT}\nbuild = batch")
    anew(monkeypatch, "what_it_imports")
    result = invoke("resume", tmp_path / "runs")
    assert result.exit_code == 2, result.output
    assert "batch_size of 'toy' must be from 1 to 60" in words(result.output)


def anew(monkeypatch, *modules):
    """As in another process."""
    experiments._loaded.cache_clear()
    for name in modules:
        monkeypatch.delitem(sys.modules, name)


def test_a_training_whose_problem_file_has_changed_is_not_resumed(tmp_path, monkeypatch):
    own, runs = tmp_path / "own.py", tmp_path / "runs"
    code = "from dataclasses import replace\nfrom tests.study.toy import TOY\nbuild = lambda: replace(TOY, lr={})\n"
    own.write_text(code.format(0.5))
    assert invoke("train", f"{own}:build", "--out", runs).exit_code == 0
    asked = ["resume", runs, "--strategies", "sgd_tenth", "--seeds", 1, "--budget", "9gradients"]
    own.write_text(code.format(0.25))
    anew(monkeypatch)
    result = invoke(*asked)
    assert result.exit_code == 2, result.output
    assert "the training's problem: the problem file has changed since this training" in words(result.output)
    assert load_results(Store(runs)).runs.empty

    assert invoke("train", f"{own}:build", "--out", runs).exit_code == 0
    result = invoke(*asked)
    assert result.exit_code == 0, result.output
    assert "its problem file has changed since" in words(result.output)
    results = load_results(Store(runs))
    assert results.trainings.loc[results.runs["training"], "lr"].tolist() == [0.25]

    own.write_text(code.format(0.5))
    assert invoke(*asked).exit_code == 0
    assert sorted(load_results(Store(runs)).runs["training"]) == sorted(results.trainings.index)


def test_a_worker_refuses_a_problem_file_that_has_changed(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("from tests.study.toy import build\n")
    training = plan_training(f"{tmp_path / 'own.py'}:build", epochs=1, seed=0, device="cpu")
    (tmp_path / "own.py").write_text("from tests.study.toy import build  # changed\n")
    assert perform(Place(str(tmp_path / "runs")), training, lambda *_: None) == "failed"
    assert "has changed since this training" in Store(tmp_path / "runs").status(training.identity).details["error"]


def test_runs_are_planned_without_the_data(tmp_path, monkeypatch):
    """Of a training the store knows how many examples there were; who looks at a finished study needs none."""
    asked = ["--strategies", "hf_m12", "--seeds", 1, "--budget", "20gradients"]
    assert invoke("study", REFERENCE, "--out", tmp_path, *asked).exit_code == 0
    anew(monkeypatch)

    def fall(*args):
        raise AssertionError("loads the data")

    monkeypatch.setattr(experiments, "_loaded", fall)
    result = invoke("resume", tmp_path, "--checkpoint", "all", *asked)
    assert result.exit_code == 0, result.output


def test_a_training_that_diverges_is_a_failure_with_words(tmp_path):
    (tmp_path / "unfit.py").write_text(UNFIT)
    result = invoke("study", f"{tmp_path / 'unfit.py'}:diverging", "--out", tmp_path / "runs")
    assert result.exit_code == 1, result.output
    assert "the training of 'steep' has diverged: the train loss is " in result.output
    assert not (tmp_path / "runs" / "report.html").exists()
    (failure,) = load_results(Store(tmp_path / "runs")).failures.to_dict("records")
    assert "lr = 1000 may be too high" in failure["error"]


def test_a_late_phase_run_that_diverges_is_in_the_report(tmp_path):
    (tmp_path / "unfit.py").write_text(UNFIT)
    result = invoke(
        "study", f"{tmp_path / 'unfit.py'}:diverging_later", "--out", tmp_path, "--checkpoint", "last", "--seeds", 2,
        "--strategies", "sgd_constant,sgd(lr=1000.0),hf_m12", "--budget", "40gradients",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Diverged: sgd(lr=1000.0) (2 of 2)" in result.output
    assert "2 of 6 runs: sgd(lr=1000.0) from checkpoint 2." in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "PROBLEM: unknown problem 'digit'. Did you mean 'digits_cnn'"),
        ([REFERENCE.replace("toy.py", "toi.py")], "PROBLEM:"),
        ([REFERENCE, "--device", "abacus"], "--device:"),
        ([REFERENCE, "--budget", "0s"], "such as 10%, 30s or 200gradients, not '0s'"),
        ([REFERENCE, "--seeds", "0"], "--seeds"),
        ([REFERENCE, "--strategies", "sgd_cosin"], "unknown strategy 'sgd_cosin'. Did you mean 'sgd_cosine'"),
        (
            [REFERENCE, "--strategies", "swa(evry=3)"],
            "'swa(evry=3)' has no option 'evry'; there are: every, lr",
        ),
        ([REFERENCE, "--strategies", "nowhere.py:mine"], "nowhere.py: no such file"),
        ([REFERENCE, "--checkpoint", "9"], "there is no checkpoint '9'; there are: last, all, 1, 2"),
        ([REFERENCE, "--checkpoint", "1,9"], "there is no checkpoint '9'; there are: last, all, 1, 2"),
        ([REFERENCE, "--checkpoint", "1,"], "there is no checkpoint ''; there are: last, all, 1, 2"),
        (["fmnist_allcnn", "--data-dir", "nowhere"], "--data-dir"),
    ],
)
def test_bad_options_are_named(tmp_path, arguments, message):
    result = invoke("study", "--out", tmp_path, *arguments)
    assert result.exit_code == 2, result.output
    assert message in words(result.output)


def test_a_folder_that_cannot_be_made_is_reported_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = invoke("train", REFERENCE, "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert "--out" in result.output


def test_status_says_what_a_folder_holds(tmp_path):
    options = ["--out", tmp_path, "--checkpoint", "1,2", "--seeds", 2, "--budget", "9gradients"]
    assert invoke("study", REFERENCE, *options, "--strategies", "sgd_tenth").exit_code == 0
    result = invoke("status", tmp_path)
    assert result.exit_code == 0, result.output
    assert "toy, training, seed 0: complete, 2 checkpoints" in result.output
    assert "sgd_tenth 9gradients 2 2" in words(result.output)


def test_status_of_a_folder_without_runs_is_refused(tmp_path):
    result = invoke("status", tmp_path / "not there")
    assert result.exit_code == 2
    assert "holds no runs" in words(result.output)
    assert not (tmp_path / "not there").exists()


@pytest.mark.parametrize("command", ["resume", "report"])
def test_a_folder_without_a_training_is_refused(tmp_path, command):
    result = invoke(command, tmp_path)
    assert result.exit_code == 2
    assert "holds no complete training" in words(result.output)


def test_the_seed_is_the_trainings(tmp_path):
    for seed in (0, 3):
        assert invoke("train", REFERENCE, "--out", tmp_path, "--seed", seed).exit_code == 0
    trainings = load_results(Store(tmp_path)).trainings
    assert sorted(trainings["seed"]) == [0, 3]


@pytest.mark.parametrize("command", ["study", "resume"])
def test_the_engine_and_what_runs_take_can_be_chosen(tmp_path, monkeypatch, command):
    made: list[object] = []

    class Engine:
        def __init__(self, reporter, *, cpus, gpus):
            made.append((cpus, gpus))

        def __call__(self, place, configs):
            made.append([perform(place, config, lambda *_: None) for config in configs])

    assert invoke("train", REFERENCE, "--out", tmp_path).exit_code == 0
    monkeypatch.setattr("latephase.study.command.RayEngine", Engine)
    first = ["study", REFERENCE, "--out"] if command == "study" else ["resume"]
    result = invoke(
        *first, tmp_path, "--engine", "ray", "--cpus", 2, "--gpus", 0.5, "--checkpoint", "last", "--seeds", 1,
        "--strategies", "sgd_tenth", "--budget", "9gradients",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert made[0] == (2, 0.5)
    assert made[-1] == ["complete"]


def test_strategies_take_options_and_variants_stand_beside_each_other(tmp_path):
    names = ["hf_equal", "hf_equal(damping=0.1)", "hf_equal(damping=0.1, cg_max_iter=3)", "sgd_cosine(lr=0.01)"]
    result = invoke(
        "study", REFERENCE, "--out", tmp_path, "--strategies", ",".join(names).replace(" ", ""), "--seeds", 1,
        "--checkpoint", "last", "--budget", "60gradients",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    results = load_results(Store(tmp_path))
    assert results.runs["strategy"].nunique() == len(results.runs) == 4
    assert set(results.runs["strategy"]) == {*names}
    first = results.steps[results.steps["step"] == 1].set_index("id")["damping"]
    for name, damping in zip(names[:3], (1.0, 0.1, 0.1), strict=True):
        assert first[results.runs.index[results.runs["strategy"] == name]].tolist() == [damping]
    assert list(results.summary["strategy"])[:2] == [names[3], names[0]]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f"{name}</th>" in page for name in names)


def test_tensorboard_gets_the_curves(tmp_path):
    result = invoke(
        "study", REFERENCE, "--out", tmp_path / "runs", "--strategies", "hf_m12", "--seeds", 1, "--checkpoint", "last",
        "--budget", "30gradients", "--tensorboard", tmp_path / "logs",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results = load_results(Store(tmp_path / "runs"))
    (run,), (training,) = results.runs.index, results.trainings.index
    for folder, name in (("training, seed 0", training), ("hf_m12, checkpoint 2, seed 0", run)):
        log = EventAccumulator(str(tmp_path / "logs" / "toy" / folder)).Reload()
        logged = [event.value for event in log.Scalars("curve/train_loss")]
        curve = results.curves[results.curves["id"] == name]
        assert logged == pytest.approx(curve["train_loss"].tolist(), rel=1e-6)
    assert [event.value for event in log.Scalars("step/damping")] == pytest.approx(results.steps["damping"].tolist())


def test_without_the_extra_the_command_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "latephase.cli")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r"'typer', which is not installed[\s\S]*pip install 'latephase\[study\]'"):
        main()
