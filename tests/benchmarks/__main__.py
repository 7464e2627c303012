"""`python -m tests.benchmarks [NAME ...]`: ours against transformers' `generate`, one JSON object a line on stdout.

Without names the rows of the whole studio follow: under load (`serving.py`), while checkpoints are swapped (`swap.py`)
and beside a training job (`jobs.py`). The rows of `drawing.py` compare guessed codes with one code a pass,
those of `quantised.py` one byte a number with four.

A line is {name, ours, peer, ratio, unit}; `ratio` says how many times better ours is. Both sides run the same weights
(a random checkpoint of the nano shape), the same sampling (temperature 1, top-p .95, top-k 0) and text ids only, since
`generate` masks image codes; each at the thread count that is best for it, warmed, in alternation, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import jobs, serving, swap
from tests.benchmarks.decoding import ROWS as DECODING
from tests.benchmarks.decoding import Sides
from tests.benchmarks.drawing import ROWS as DRAWING
from tests.benchmarks.learning import ROWS as LEARNING
from tests.benchmarks.quantised import ROWS as QUANTISED
from tests.benchmarks.rollouts import ROWS as ROLLOUTS
from tests.benchmarks.training import ROWS as TRAINING

ROWS = {**DECODING, **DRAWING, **QUANTISED, **ROLLOUTS, **TRAINING, **LEARNING}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows to run (default: all of {', '.join(ROWS)})")
    parser.add_argument("--rounds", type=int, default=5, help="alternations a row (default 5)")
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=sorted({1, min(2, os.cpu_count() or 1)}),
        help="thread counts to try for each side",
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(ROWS)
    if unknown:
        parser.error(f"unknown row {', '.join(sorted(unknown))}: choose from {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(Path(folder) / "nano-shape")
        for name in arguments.names or ROWS:
            row = ROWS[name](sides, rounds=arguments.rounds, threads=arguments.threads)
            sys.stdout.write(json.dumps({"name": name, **row}) + "\n")
            sys.stdout.flush()
    if arguments.names:
        return 0
    return max([part.main([]) for part in (serving, swap, jobs)])


if __name__ == "__main__":
    sys.exit(main())
