"""`omni-r1 grade`: grades one answer without a server."""

from __future__ import annotations

import argparse
import json

from app.cli.terminal import EXIT_OK, one_line, write
from training.scoring.grading import Grade, grade


def run(args: argparse.Namespace) -> int:
    """Prints the grade and its basis."""
    graded = grade(args.answer, args.reference, args.choice, similarity=args.similarity)
    write(_as_json(graded) if args.json else _as_text(graded))
    return EXIT_OK


def _as_json(graded: Grade) -> str:
    document = {
        "accuracy": graded.score,
        "check": graded.check,
        "answer": graded.answer,
        "reference": graded.reference,
        "details": dict(graded.details),
    }
    return json.dumps(document) + "\n"


def _as_text(graded: Grade) -> str:
    verdict = {1.0: "right", 0.0: "wrong"}.get(graded.score, f"{graded.score:.2f}")
    lines = [f"{verdict} ({graded.check})", f"  answer     {graded.answer}", f"  reference  {graded.reference}"]
    lines += [f"  {name.replace('_', ' ')}: {value}" for name, value in graded.details.items()]
    return "\n".join(one_line(line) if k == 0 else "  " + one_line(line) for k, line in enumerate(lines)) + "\n"
