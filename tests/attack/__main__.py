"""Attacks a local studio and counts failures: `python -m tests.attack [NAME ...]` (`make attack`).

    kill      random kills of server, engine and worker: lost or repeated events, wrong statuses
    chaos     kills of anything on both databases and on Ray under mixed load; an audit of every row, log and image
    pair      two servers on one PostgreSQL with 200 readers: lost or repeated events, latency, its restart
    surroundings  a full disk, a slow one and a clock that jumps, under load
    fuzz      hostile requests with and without a key: 5xx responses
    flood     image bombs and idle sockets: memory, latency, running traces
    soak      many traces with readers that disconnect: memory growth
    schema    /openapi.json checked by schemathesis

Each starts its own servers on loopback and stops by itself. Results are JSON objects, one per line, on stdout:
{name, value, unit, limit?, ok?}. The exit code is 1 if a limit is exceeded. docs/reliability.md holds the figures.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.attack import chaos, flood, fuzz, kill, pair, schema, soak, surroundings
from tests.attack.report import Report

ATTACKS = {
    "kill": kill.attack,
    "chaos": chaos.attack,
    "pair": pair.attack,
    "surroundings": surroundings.attack,
    "fuzz": fuzz.attack,
    "flood": flood.attack,
    "soak": soak.attack,
    "schema": schema.attack,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.attack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(ATTACKS)}")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (0)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rounds, requests and traces (1)")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(ATTACKS)
    if unknown:
        parser.error(f"unknown attack {', '.join(sorted(unknown))}: choose from {', '.join(ATTACKS)}")
    report = Report()
    for name in arguments.names or ATTACKS:
        with tempfile.TemporaryDirectory(prefix=f"omni-r1-{name}-") as folder:
            ATTACKS[name](Path(folder), report, random.Random(arguments.seed), arguments.scale)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
