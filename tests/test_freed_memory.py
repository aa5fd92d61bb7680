import ctypes
import platform
import subprocess
import sys

import pytest

from latephase import keep_freed_memory

PROGRAM = """
import resource
import sys

import torch
import latephase

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert latephase.keep_freed_memory()


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


for size in (2**24, 2**22, 2**24):  # of 64 and 16 MB
    torch.ones(size)
before = faults()
for _ in range(10):
    blocks = [torch.ones(size) for size in (2**24, 2**22)]
    del blocks
print(faults() - before)
"""
ON_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


@ON_GLIBC
def test_pages_are_not_made_anew_once_freed_memory_is_kept():
    def faults(argument):
        done = subprocess.run([sys.executable, "-c", PROGRAM, argument], capture_output=True, text=True, check=True)
        return int(done.stdout)

    before, after = faults("as it is"), faults("keep")
    assert before > 100  # 10 times 80 MB, in pages of 4 kB or, where the system has them, 2 MB
    assert after < before / 4  # a block may find no room once, and get new pages


def test_elsewhere_nothing_is_done(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "platform", "darwin")
        assert keep_freed_memory() is False
    with monkeypatch.context() as patched:  # another libc
        patched.setattr(sys, "platform", "linux")
        patched.setattr(ctypes, "CDLL", lambda name: object())
        assert keep_freed_memory() is False


@pytest.mark.parametrize(("answers", "kept"), [((1, 1), True), ((0, 1), False), ((1, 0), False)])
def test_it_is_kept_if_both_settings_are_taken(answers, kept, monkeypatch):
    asked = []

    class Library:
        @staticmethod
        def mallopt(parameter, value):
            asked.append((parameter, value))
            return answers[len(asked) - 1]

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    assert keep_freed_memory() is kept
    assert asked[0] == (-4, 0)
    assert not kept or asked[1] == (-1, -1)


def test_the_command_line_keeps_it(monkeypatch):
    from latephase import __main__, cli

    called = []
    monkeypatch.setattr(__main__, "keep_freed_memory", lambda: called.append("kept"))
    monkeypatch.setattr(cli, "app", lambda: called.append("run"))
    __main__.main()
    assert called == ["kept", "run"]
