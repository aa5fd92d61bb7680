"""`python -m benchmarks`: measure everything, save it as JSON, and print it as tables."""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine
from benchmarks.measure import PARTS, measure
from benchmarks.networks import NETWORKS
from benchmarks.report import RESULTS, disagreement, section, write_page
from benchmarks.timing import TOLERANCE

QUICK = ("3c3d", "mlp", "lstm")


def main() -> int:
    """Run the command; return 1 if something could not be measured, or a peer's products differ from ours."""
    options = parse_arguments()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "machine": describe_machine(device),
        "rounds": options.rounds,
        "networks": {},
    }
    failed = False
    for name in options.networks:
        row = results["networks"][name] = {}
        for part in options.parts:
            start = time.perf_counter()
            row[part] = measure(part, name, options.device, options.rounds, options.threads)
            failed |= "error" in row[part] or disagreement(row[part]) > TOLERANCE
            outcome = row[part].get("error", f"{time.perf_counter() - start:.0f} s")
            print(f"{name}, {part}: {outcome}", file=sys.stderr, flush=True)  # noqa: T201
        if options.out:  # after every network, so that an interrupt loses little
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(section(results))  # noqa: T201
    if options.page:
        write_page()
    return int(failed)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure, and print tables. A run of everything is saved in benchmarks/results/ and renews "
        "docs/performance.md.",
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, help="interleaved rounds, half as many for whole steps (default: 5)")
    parser.add_argument("--quick", action="store_true", help=f"one round, of {', '.join(QUICK)} if none are named")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="1 is steadier on a busy machine")
    parser.add_argument("--out", type=Path, metavar="JSON", help="where to save the results of this run instead")
    options = parser.parse_args()
    options.page = not (options.networks or options.parts or options.rounds or options.quick or options.out)
    options.networks = options.networks or (QUICK if options.quick else tuple(NETWORKS))
    options.parts = options.parts or tuple(PARTS)
    options.rounds = options.rounds or (1 if options.quick else 5)
    if options.page:
        options.out = RESULTS / f"{torch.device(options.device).type}.json"
    return options


if __name__ == "__main__":
    sys.exit(main())
