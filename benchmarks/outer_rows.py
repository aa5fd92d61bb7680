"""What the matrix of a direct solve takes, RRᵀ: from whole rows of the Jacobian, and from their outer products.

    python -m benchmarks.outer_rows --problems poisson_2d_10k poisson_2d_116k

Both are made from the same point, one after the other in each round; the first round warms up, and traces. Before they
are timed they have to agree.
"""

import argparse
import statistics
import sys
import time

import torch

from latephase.curvature import ggn, jacobian
from latephase.curvature.rewrite import outer_products
from latephase.outer_rows import OuterRows, lower_gram
from latephase.study.problems import find_problem

AGREED = 1e-9
WAYS = {"whole rows": sys.maxsize, "outer products": 0}  # from how many numbers on rows are not whole


class Point:
    """A problem's curvature at its initialisation.

    Args:
        name: The problem.
    """

    def __init__(self, name: str) -> None:
        problem = find_problem(name)
        torch.manual_seed(0)
        model, data = problem.build_model(), problem.load_data(None)
        self.parameters = sum(p.numel() for p in model.parameters())
        self._curvature = ggn(lambda: problem.forward(model, data.train), list(model.parameters()))
        self._roots = self._curvature.roots()

    def matrix(self, way: str) -> tuple[torch.Tensor, bool, float, float]:
        """Return RRᵀ below its diagonal, whether R was in outer products, and the seconds of R and of RRᵀ."""
        jacobian.LARGE = WAYS[way]
        begin = time.perf_counter()
        R = self._curvature.rows(self._roots)[0]
        made = time.perf_counter()
        K = lower_gram(R)
        return K.tril(), isinstance(R, OuterRows), made - begin, time.perf_counter() - made


def row(name: str, rounds: int) -> str:
    """Return a problem's row of the table.

    Raises:
        ValueError: If the two ways disagree.
    """
    point, times = Point(name), {way: [] for way in WAYS}
    for number in range(1 + rounds):
        found = {way: point.matrix(way) for way in WAYS}
        whole, outer = found["whole rows"][0], found["outer products"][0]
        if not float((whole - outer).norm()) <= AGREED * float(whole.norm()) or not found["outer products"][1]:
            raise ValueError(f"{name}: the two ways do not agree")
        for way in WAYS if number else ():
            times[way].append(found[way][2:])
    cells = []
    for way in WAYS:
        made, multiplied = (statistics.median(values) for values in zip(*times[way], strict=True))
        cells += [f"{made:.2f}", f"{multiplied:.2f}"]
    ratio = statistics.median(
        sum(slow) / sum(fast) for slow, fast in zip(times["whole rows"], times["outer products"], strict=True)
    )
    return f"| {name} | {point.parameters:,} | {len(whole):,} | {' | '.join(cells)} | {ratio:.2g} |"


def main() -> int:
    """Read the arguments, compare, measure, print the table; 1 if the two ways disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=["poisson_2d_10k", "poisson_2d_116k"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    outer_products.WORTH = 0.0  # also where little is gained
    try:
        rows = [row(name, options.rounds) for name in options.problems]
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    head = "| | parameters | rows | whole rows: R, s | RRᵀ, s | outer products: R, s | RRᵀ, s | times as fast |"
    sys.stdout.write("\n".join([head, "| :-- | --: | --: | --: | --: | --: | --: | --: |", *rows]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
