"""Start a study in a process, kill it after a random time, again and again; then let it come to its end.

    python killed.py FOLDER KILLS REFERENCE

Processes are forked from one that has everything imported, so that a kill falls into the work and not into imports.
"""

import os
import random
import signal
import sys
import time

import torch

from latephase.cli import app


def study(folder: str, reference: str) -> None:
    app(
        ["study", reference, "--out", folder, "--checkpoint", "all", "--strategies", "sgd_cosine,swa,hf_m12",
         "--seeds", "2", "--budget", "60gradients", "--quiet"],
        standalone_mode=False,
    )  # fmt: skip


def main() -> None:
    folder, kills, reference = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    moments = random.Random(0)
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            study(folder, reference)
            os._exit(0)
        time.sleep(moments.uniform(0.05, 1.0))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        sys.stdout.write("killed\n" if os.WIFSIGNALED(status) else "ended\n")
        sys.stdout.flush()
    study(folder, reference)


if __name__ == "__main__":
    main()
