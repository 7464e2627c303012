"""Writes into the manifests of the embedded checkpoints which questions they were trained on.

    python -m training.nano.questions model/nano/*

The server notes questions of another kind (`model/text/questions.py`). Only ``manifest.json`` changes. A checkpoint
without a base has learned the orders of the drills, too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoint.manifest import Manifest
from model.checkpoint.shards import CheckpointError
from model.text.questions import KEY, card
from training.world.drills import DRAWING, KINDS, LOCATING, make_drill
from training.world.world import FAMILIES, PESFT_SEEDS, make_task

TASKS_OF_A_FAMILY = 4_000
DRILLS = 40_000  # of each kind of shares


def task_questions(count: int = TASKS_OF_A_FAMILY) -> Iterator[str]:
    """Questions of every family of the world."""
    for slice_, families in FAMILIES.items():
        for family in families:
            for seed in PESFT_SEEDS[:count]:
                yield make_task(slice_, seed, family=family).question


def drill_questions(count: int = DRILLS) -> Iterator[str]:
    """Orders and questions about an image of the base training."""
    for shares in (KINDS, DRAWING, LOCATING):
        for seed in range(count):
            drill = make_drill(seed, shares=shares)
            if drill.image is not None:
                yield drill.prompt_text
                yield from (text for text, _ in drill.more)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: folders of checkpoints."""
    tasks = card(task_questions())
    everything: dict[str, Any] = {}
    for folder in sys.argv[1:] if argv is None else argv:
        try:
            manifest = Manifest.read(folder)
        except CheckpointError as error:
            sys.stderr.write(f"{error}\n")
            return 2
        if manifest.base is None:
            everything = everything or card((*task_questions(), *drill_questions()))
        found = tasks if manifest.base is not None else everything
        replace(manifest, extra={**manifest.extra, KEY: found}).write(Path(folder))
        sys.stdout.write(f"{folder}: {len(found['follows'])} words\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
