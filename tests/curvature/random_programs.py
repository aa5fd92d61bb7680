"""`python -m tests.curvature.random_programs --programs 2000`: hold many random programs against the truth.

With `--seed 17` one of them, with its description and each comparison. `--jobs` sets the number of processes, and
`--store FILE` keeps what was found: the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch
from tests.curvature.program_checks import Finding, Report, check, closed_afterwards

CHUNK = 10  # programs in one piece of work
WIDTH = 300  # of what is said about a cause
VERDICTS = ("right", "refused", "wrong", "no reference")


def _reports(seeds: list[int], fresh: bool) -> list[Report]:
    with closed_afterwards():
        return [_report(seed, fresh) for seed in seeds]


def _report(seed: int, fresh: bool) -> Report:
    try:
        return check(seed, fresh=fresh)
    except Exception as error:  # the program itself is at fault, and the others go on
        return Report(seed, "?", (), (Finding("wrong", "the test itself", "error", repr(error)),))


def run(seeds: list[int], jobs: int, fresh: bool) -> Iterator[Report]:
    """Reports in the order in which they come."""
    chunks = [seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK)]
    while chunks:
        died: list[list[int]] = []
        with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            futures = {pool.submit(_reports, chunk, fresh): chunk for chunk in chunks}
            for future in as_completed(futures):
                if isinstance(future.exception(), BrokenProcessPool):
                    died.append(futures[future])
                else:
                    yield from future.result()
        if died == chunks and len(died) == 1 and len(died[0]) == 1:
            yield Report(died[0][0], "?", (), (Finding("wrong", "anywhere", "the process died"),))
            return
        # Whose program it was shows when it is alone.
        chunks, rest = [], [[seed] for chunk in died for seed in chunk]
        for chunk in rest:
            yield from run(chunk, 1, fresh)


def stored(store: Path | None) -> list[Report]:
    """What earlier runs have found; a line that was cut off counts as none."""
    lines = store.read_text(encoding="utf-8").splitlines(keepends=True) if store and store.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [
        Report(seed, said, tuple(parts), tuple(Finding(*f) for f in findings)) for seed, said, parts, findings in rows
    ]


def table(reports: list[Report]) -> str:
    """How many programs are right, refused and wrong, and why."""
    return "\n".join(
        [
            "",
            *_counts(reports),
            *_by_part(reports),
            *_causes(reports, "refused"),
            *_causes(reports, "wrong"),
            *_wrong(reports),
        ]
    )


def _counts(reports: list[Report]) -> Iterator[str]:
    programs = Counter(report.verdict for report in reports)
    products = Counter(finding.verdict for report in reports for finding in report.findings)
    yield f"{'':14}{'programs':>10}{'products':>10}"
    for verdict in VERDICTS:
        yield f"{verdict:14}{programs[verdict]:10}{products[verdict]:10}"


def _by_part(reports: list[Report]) -> Iterator[str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for report in reports:
        for name in sorted(set(report.parts)):
            counts[name][report.verdict] += 1
    yield f"\n{'programs with this part':45}" + "".join(f"{verdict:>14}" for verdict in VERDICTS)
    for name, of in sorted(counts.items()):
        yield f"{name:45}" + "".join(f"{of[verdict]:14}" for verdict in VERDICTS)


def _causes(reports: list[Report], verdict: str) -> Iterator[str]:
    """One line for each cause: of how many programs, and the first of them."""
    found: dict[str, set[int]] = defaultdict(set)
    for report in reports:
        for finding in report.findings:
            if finding.verdict == verdict:
                found[f"{finding.where.replace(',', ' at').split(' at ')[0]}: {finding.cause}"[:WIDTH]].add(report.seed)
    yield f"\n{verdict}: {len(set().union(*found.values()))} programs; by cause, with the first seeds"
    for cause, seeds in sorted(found.items(), key=lambda item: -len(item[1])):
        yield f"{len(seeds):5}  {cause}  {sorted(seeds)[:6]}"


def _wrong(reports: list[Report]) -> Iterator[str]:
    """Programs that are wrong, so that they can be repeated."""
    for report in sorted(reports, key=lambda report: report.seed):
        if report.wrong:
            yield f"seed {report.seed}: {report.description}"
            yield from (f"    {finding}" for finding in report.wrong)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.curvature.random_programs", description=__doc__)
    parser.add_argument("--programs", type=int, default=200, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first one's seed")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes")
    parser.add_argument("--seed", type=int, help="only this one, in detail")
    parser.add_argument("--store", type=Path, help="file to keep reports in, and to go on from")
    parser.add_argument("--no-fresh", action="store_true", help="leave out the comparison with fresh processes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.seed is not None:
        (report,) = _reports([options.seed], not options.no_fresh)
        _say(str(report))
        return bool(report.wrong)
    wanted = range(options.start, options.start + options.programs)
    reports, start = [report for report in stored(options.store) if report.seed in wanted], time.perf_counter()
    seeds = sorted(set(wanted) - {report.seed for report in reports})
    for report in run(seeds, options.jobs, not options.no_fresh):
        reports.append(report)
        if options.store is not None:
            with options.store.open("a", encoding="utf-8") as file:
                file.write(json.dumps(report) + "\n")
        if report.wrong:
            _say(f"seed {report.seed} is {report.wrong[0]}")
        if len(reports) % 20 == 0:
            _say(f"{len(reports)} of {len(wanted)} programs, {time.perf_counter() - start:.0f} s")
    _say(table(reports))
    return any(report.wrong for report in reports)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
