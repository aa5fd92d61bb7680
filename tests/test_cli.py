import re
import sys

import matplotlib.image
import pytest
from typer.testing import CliRunner

from latephase.__main__ import main
from latephase.cli import app
from latephase.study.demo import STRATEGIES
from latephase.study.training import load_checkpoint


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def words(text):
    """The text of an error message without the frame around it."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def test_demo_end_to_end(tmp_path):
    out = tmp_path / "a" / "b"
    result = invoke("demo", "--epochs", 1, "--budget", 0.05, "--seed", 5, "--seeds", 2, "--out", out)

    assert result.exit_code == 0, result.output
    for name in ("checkpoint", *(strategy.name for strategy in STRATEGIES)):
        (row,) = re.findall(rf"^ +{name} .*$", result.output, re.MULTILINE)
        loss, accuracy, steps, seconds = re.fullmatch(
            r" +\w+ +([\d.]+)(?: ± [\d.]+)? +([\d.]+)(?: ± [\d.]+)?% +(\d+) +([\d.]+) *", row
        ).groups()
        assert ("±" in row) == (name != "checkpoint")
        assert 0 < float(loss) < 4
        assert 0 <= float(accuracy) <= 100
        if name == "checkpoint":
            assert int(steps) == 1297 // 32
        else:
            assert float(seconds) <= 0.1  # 0.05, rounded
            assert f"{name}, seed 5: train loss" in result.output
            assert f"{name}, seed 6: train loss" in result.output
    assert f"figure: {out / 'demo.png'}" in result.output
    assert matplotlib.image.imread(out / "demo.png").std() > 0.05
    assert load_checkpoint(out / "checkpoint.pt").keys()


def test_quiet_shows_results_only(tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    result = invoke("demo", "--epochs", 1, "--budget", 0.02, "--seeds", 1, "--out", tmp_path, "--quiet")
    assert result.exit_code == 0, result.output
    assert "seed" not in result.output
    assert "hf_large" in result.output
    assert threads == [1]


def test_demo_reads_fashion_mnist_from_the_folder_given(tmp_path):
    result = invoke("demo", "--problem", "fmnist_allcnn", "--data-dir", tmp_path, "--out", tmp_path)
    assert result.exit_code == 2
    assert "--data-dir" in result.output
    assert "train-images-idx3-ubyte.gz" in words(result.output).replace(" ", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problem", "digit"], "--problem: unknown problem 'digit'. Did you mean 'digits_cnn'?"),
        (["--device", "abacus"], "--device:"),
        (["--budget", "0"], "--budget"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_bad_options_are_named(tmp_path, arguments, message):
    result = invoke("demo", "--out", tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in words(result.output)


def test_a_folder_that_cannot_be_made_is_reported_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = invoke("demo", "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert "--out" in result.output


def test_without_the_extra_the_command_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "latephase.cli")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r"'typer', which is not installed[\s\S]*pip install 'latephase\[study\]'"):
        main()
