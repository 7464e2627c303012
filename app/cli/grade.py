"""`omni-r1 grade`: grades one answer without a server, and tries rewards of your own on it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from app.cli.terminal import EXIT_BAD_INPUT, EXIT_OK, CommandError, one_line, write
from training.scoring.custom import Case, Response, RewardError, Sample, flat_values
from training.scoring.grading import Grade, grade
from training.spec.hyperparameters import RewardHyperparameters


def run(args: argparse.Namespace) -> int:
    """Prints the grade and its basis."""
    graded = grade(args.answer, args.reference, args.choice, similarity=args.similarity)
    custom = _custom(args, graded) if args.reward else {}
    write(_as_json(graded, custom) if args.json else _as_text(graded, custom))
    return EXIT_OK


def _custom(args: argparse.Namespace, graded: Grade) -> dict[str, float]:
    """The values of the rewards of your own, for a response that is only an answer."""
    from training.scoring.custom_sources import CustomRewards

    case = Case(
        Sample("", args.reference, tuple(args.choice)), Response(args.answer, accuracy=graded.score, format=1.0)
    )
    try:
        named = RewardHyperparameters.model_validate({"custom": [_named(text) for text in args.reward]}).custom
        rewards = CustomRewards(named)
        try:
            (values,) = rewards.score([case])
        finally:
            rewards.close()
    except ValidationError as error:
        raise CommandError(f"--reward: {error.errors()[0]['msg']}", EXIT_BAD_INPUT) from None
    except RewardError as error:
        raise CommandError(error.detail, EXIT_BAD_INPUT) from None
    if isinstance(values, str):
        raise CommandError(values, EXIT_BAD_INPUT)
    return flat_values(values)


def _named(text: str) -> dict[str, str]:
    """The reward that an option names."""
    if "://" in text:
        return {"url": text}
    file, colon, function = text.rpartition(":")
    return {"file": f"{Path(file).resolve()}:{function}"} if colon else {"name": text}


def _as_json(graded: Grade, custom: Mapping[str, float]) -> str:
    document = {
        "accuracy": graded.score,
        "check": graded.check,
        "answer": graded.answer,
        "reference": graded.reference,
        "details": dict(graded.details),
    }
    return json.dumps(document | ({"custom": dict(custom)} if custom else {})) + "\n"


def _as_text(graded: Grade, custom: Mapping[str, float]) -> str:
    verdict = {1.0: "right", 0.0: "wrong"}.get(graded.score, f"{graded.score:.2f}")
    lines = [f"{verdict} ({graded.check})", f"  answer     {graded.answer}", f"  reference  {graded.reference}"]
    lines += [f"  {name.replace('_', ' ')}: {value}" for name, value in graded.details.items()]
    lines += [f"  {name}: {value:g}" for name, value in custom.items()]
    return "\n".join(one_line(line) if k == 0 else "  " + one_line(line) for k, line in enumerate(lines)) + "\n"
