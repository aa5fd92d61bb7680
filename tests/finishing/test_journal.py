import errno
import random

import numpy as np
import pytest
import torch

from latephase.finishing.journal import FILE, Journal, random_from_plain, random_to_plain

CPU = torch.device("cpu")


def test_what_was_written_last_is_read(tmp_path):
    journal = Journal(tmp_path / "a" / "b", {"seed": 1})
    assert journal.read() is None
    for value in (1.0, 2.0):
        journal.write({"weights": torch.full((3,), value), "numbers": [value]})
    state = Journal(tmp_path / "a" / "b", {"seed": 1}).read()
    assert state["numbers"] == [2.0]
    assert torch.equal(state["weights"], torch.full((3,), 2.0))


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal(None, {})
    journal.write({"a": 1})
    assert journal.read() is None
    assert list(tmp_path.iterdir()) == []


def test_another_finish_is_refused_with_what_differs(tmp_path):
    Journal(tmp_path, {"seed": 1, "budget": "3 s", "judge": "loss"}).write({})
    with pytest.raises(ValueError, match="of another finish, with other seed, budget;"):
        Journal(tmp_path, {"seed": 2, "budget": "4 s", "judge": "loss"}).read()


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / FILE).write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="no finish that can be read; move it away"):
        Journal(tmp_path, {}).read()


def test_a_disk_that_is_full_leaves_the_last_state_and_one_warning(tmp_path, monkeypatch):
    journal, save = Journal(tmp_path, {}), torch.save
    journal.write({"n": 1})

    def half(content, path):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.warns(UserWarning, match="no space left on device"):
        journal.write({"n": 2})
    journal.write({"n": 3})  # says it once
    assert "no space left" in journal.lost
    assert journal.read() == {"n": 1}
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    monkeypatch.setattr(torch, "save", save)
    journal.write({"n": 4})
    assert journal.lost == ""
    assert journal.read() == {"n": 4}


def test_random_streams_go_on_where_they_were(tmp_path):
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    np.random.standard_normal()  # one of a pair is kept for later
    Journal(tmp_path, {}).write({"random": random_to_plain(CPU)})

    def draw():
        return torch.rand(1).item(), random.random(), random.gauss(0, 1), np.random.standard_normal()

    expected = draw()
    draw()
    random_from_plain(CPU, Journal(tmp_path, {}).read()["random"])
    assert draw() == expected
