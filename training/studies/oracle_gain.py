"""Study of a model's own images: do its answers depend on them, and what would perfect images gain?

Each held-out task is answered greedily. Then every step with an image is continued greedily from the response's own
tokens up to that step, with only the codes of its image replaced: by the reference image, a white one, the image of the
same step of another task, or the previous image. In the oracle condition every image of the response is replaced by
the reference image before the model goes on. Continuing with nothing replaced must repeat the response. Each image's
reliance is measured, too, and compared with what replacing it changed. Nothing is trained.

    python -m training.studies.oracle_gain --checkpoint nano-omni-r1 --tasks 400 --out results/oracle/nano-omni-r1.json

writes the numbers and every branch there and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import resolve
from model.engine.analysis import likeliest, token_logprobs
from model.engine.engine import Engine
from training.benchmark.evaluate import ask, evaluation_tasks, read_response
from training.benchmark.interventions import (
    GREEDY,
    Codes,
    Drawn,
    blank_codes,
    continue_all,
    correct_all,
    drawn_images,
    edited,
    encoded,
    other_images,
)
from training.data.token_sets import EncodedTask
from training.scoring.grading import is_right
from training.studies.oracle_report import summarize, tables
from training.world.task import Task
from training.world.world import LEVELS, parse_level

SLOTS = 16
ITSELF = "itself"
KINDS = ("reference", "blank", "other task", "previous")


@dataclass(frozen=True)
class Own:
    """The model's own response to a task; `images` in order."""

    prompt: list[int]
    tokens: list[int]
    seen: Codes
    images: list[Drawn]
    answer: str | None
    right: bool
    drawings_right: bool


@dataclass(frozen=True)
class Branch:
    """A continuation from the response's own steps, with the last image replaced by one of another kind."""

    task: int
    step: int
    last: bool  # whether this was the response's last image
    kind: str
    replaced: float  # share of the image's codes that differ from the own ones
    answer: str | None
    right: bool
    changed: bool  # whether the answer differs from the own one
    reliance: float | None = None  # of the own answer on the replaced image, in nats; None without an answer
    reliance_later: float | None = None  # of everything after the image, later images included
    follows: bool | None = None  # whether it is the answer of the other task; None if that is the own one's or unknown


@dataclass(frozen=True)
class Oracle:
    """The response with reference images only; `kept` counts own images at steps that the reference does not have."""

    answer: str | None
    right: bool
    images: int
    kept: int


@dataclass(frozen=True)
class Apart:
    """The first difference between a response and its continuation with nothing replaced."""

    task: int
    step: int
    place: int
    margin: float  # between the two top logits at that place


def run_study(loaded: LoadedCheckpoint, tasks: Sequence[Task], *, slots: int = SLOTS) -> dict[str, Any]:
    """Answer, branch and correct; returns the summary and every row.

    Raises:
        ValueError: the checkpoint cannot draw.
    """
    if loaded.vq is None or not loaded.can_draw:
        raise ValueError(f"{loaded.name} cannot draw")
    started = time.monotonic()
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=slots, admissions_per_step=slots)
    known = encoded(loaded, tasks)
    own = own_responses(loaded, tasks, slots=slots)
    branches, apart = branch(loaded, engine, tasks, known, own)
    oracles = correct(loaded, engine, tasks, known, own)
    families = [f"{task.slice}/{task.family}" for task in tasks]
    return {
        "checkpoint": loaded.name,
        "weights": {name: about for name, about in loaded.manifest.files.items() if name.endswith(".safetensors")},
        "tasks": len(tasks),
        "seconds": round(time.monotonic() - started),
        "kept_steps": {
            "traces": sum(bool(one.images) for one in own),
            "branches": sum(len(one.images) for one in own),
            "reproduced": sum(bool(one.images) for one in own) - len({found.task for found in apart}),
            "differing": [asdict(found) for found in apart],
        },
        **summarize(families, own, branches, oracles),
        "rows": {
            "own": [{"answer": one.answer, "right": one.right, "drawings": one.drawings_right} for one in own],
            "oracle": [asdict(one) for one in oracles],
            "branches": [asdict(one) for one in branches],
        },
    }


def own_responses(loaded: LoadedCheckpoint, tasks: Sequence[Task], *, slots: int = SLOTS) -> list[Own]:
    """The checkpoint's greedy responses."""
    out = []
    for task, (seen, completion) in zip(tasks, ask(loaded, tasks, num_slots=slots), strict=True):
        response = read_response(loaded, completion.token_ids, seen, task)
        out.append(
            Own(
                prompt=loaded.template.prompt_ids(task.question, [seen]),
                tokens=completion.token_ids,
                seen=seen,
                images=drawn_images(loaded, completion.token_ids),
                answer=response.answer,
                right=is_right(response.answer, task.answer),
                drawings_right=response.drawings_right == response.drawings_total,
            )
        )
    return out


def branch(
    loaded: LoadedCheckpoint,
    engine: Engine,
    tasks: Sequence[Task],
    known: Sequence[EncodedTask],
    own: Sequence[Own],
) -> tuple[list[Branch], list[Apart]]:
    """Continue from every image with every replacement.

    A replacement that leaves every code as it is shares the continuation with nothing replaced.

    Returns:
        The branches, those with nothing replaced included, and where those differ from their responses.
    """
    places = [(number, image) for number, one in enumerate(own) for image in one.images]
    others = other_images(loaded, [(tasks[number], image.step) for number, image in places])
    blank = blank_codes(loaded)
    wanted: list[tuple[int, Drawn, str, Codes, str | None]] = []
    for (number, image), other in zip(places, others, strict=True):
        one, steps = own[number], known[number].steps
        wanted.append((number, image, ITSELF, image.codes, None))
        if image.step <= len(steps):
            wanted.append((number, image, "reference", steps[image.step - 1][2], None))
        wanted.append((number, image, "blank", blank, None))
        if other is not None:
            wanted.append((number, image, "other task", *other))
        before = [known_image.codes for known_image in one.images if known_image.end < image.end]
        wanted.append((number, image, "previous", before[-1] if before else one.seen, None))
    prefixes = [
        (number, tuple(edited(loaded, own[number].tokens, image, codes))) for number, image, _, codes, _ in wanted
    ]
    different = list(dict.fromkeys(prefixes))
    continued = continue_all(loaded, engine, [(own[number].prompt, prefix) for number, prefix in different])
    tokens_of = dict(zip(different, continued, strict=True))
    relied = [reliance(loaded, engine, one) for one in own]
    branches, apart = [], []
    for (number, image, kind, codes, other_answer), prefix in zip(wanted, prefixes, strict=True):
        one, tokens = own[number], tokens_of[prefix]
        if kind == ITSELF and tokens != one.tokens:
            apart.append(_apart(engine, number, image, one, tokens))
        answer = read_response(loaded, tokens, None, None).answer
        telling = other_answer is not None and not is_right(one.answer, other_answer)
        branches.append(
            Branch(
                task=number,
                step=image.step,
                last=image is one.images[-1],
                kind=kind,
                replaced=sum(a != b for a, b in zip(codes, image.codes, strict=True)) / len(codes),
                answer=answer,
                right=is_right(answer, tasks[number].answer),
                changed=answer != one.answer,
                reliance=relied[number][image.step][0],
                reliance_later=relied[number][image.step][1],
                follows=is_right(answer, other_answer) if telling and other_answer is not None else None,
            )
        )
    return branches, apart


def reliance(loaded: LoadedCheckpoint, engine: Engine, own: Own) -> dict[int, tuple[float | None, float]]:
    """What each image is worth, by step: the log-probability lost when no later token can see it.

    Returns:
        The loss of the answer (None without one), and of everything after the image.
    """
    answer, start = loaded.template.answer_tokens(own.tokens), len(own.prompt) - 1

    def logprobs(hidden: range) -> list[float]:
        return token_logprobs(engine, own.prompt, own.tokens, GREEDY, hidden=hidden)

    whole, found = logprobs(range(0)), {}
    for image in own.images:  # its last token is its end
        without = logprobs(range(start + image.end - len(image.codes), start + image.end))
        lost = [a - b for a, b in zip(whole, without, strict=True)]
        found[image.step] = (sum(lost[answer.start : answer.stop]) if answer else None, sum(lost[image.end :]))
    return found


def _apart(engine: Engine, number: int, image: Drawn, own: Own, tokens: Sequence[int]) -> Apart:
    pairs = enumerate(zip(own.tokens, tokens, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(own.tokens), len(tokens)))
    (_, first), (_, second) = likeliest(engine, own.prompt, own.tokens[:place], GREEDY, 2)
    return Apart(number, image.step, place, first - second)


def correct(
    loaded: LoadedCheckpoint,
    engine: Engine,
    tasks: Sequence[Task],
    known: Sequence[EncodedTask],
    own: Sequence[Own],
) -> list[Oracle]:
    """Answer again with reference images (:func:`training.benchmark.interventions.correct_all`)."""
    corrected = correct_all(loaded, engine, [one.prompt for one in own], known)
    out = []
    for task, trace, tokens in zip(tasks, known, corrected, strict=True):
        images = drawn_images(loaded, tokens)
        answer = read_response(loaded, tokens, None, None).answer
        kept = sum(image.step > len(trace.steps) for image in images)
        out.append(Oracle(answer, is_right(answer, task.answer), len(images), kept))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; exit code 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="a name of the embedded family, or a folder")
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--level", type=parse_level, choices=LEVELS, default="normal")
    parser.add_argument("--slots", type=int, default=SLOTS, help=f"sequences at once ({SLOTS})")
    parser.add_argument("--out", type=Path, required=True, help="the file of the numbers (JSON)")
    options = parser.parse_args(argv)
    loaded = load_checkpoint(resolve(options.checkpoint))
    result = run_study(loaded, evaluation_tasks(options.tasks, level=options.level), slots=options.slots)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"level": options.level, **result}, indent=1) + "\n")
    sys.stdout.write(tables(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
