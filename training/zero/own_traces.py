r"""A round of self-training: traces that a checkpoint drew itself, filtered by answers (ReST-EM, arXiv 2312.06585).

    python -m training.zero.own_traces runs/zero-1 --tasks 4000 --samples 8 --out runs/own

The checkpoint answers questions of the world's training seeds at temperature 1. A response is kept if it is well-formed
and its answer is right and the most frequent one of its question; of a question's, the `--each` surest are kept, and of
those the surest share of each kind of question. PeSFT then starts from the base again. The filter reads answers and
likelihoods only; the world's verdict on drawings is reported and never decides.

Writes ``traces.jsonl`` (the authors' PeSFT format) and ``report.json``. Finished chunks are kept: the same command
continues an interrupted run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from model.checkpoint.atomic import write_file
from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import CheckpointError, resolve
from model.engine.phases import Legal
from model.engine.sequence import Completion
from training.benchmark.evaluate import Response, ask, read_response
from training.data.traces import trace_row
from training.scoring.grading import is_right, normalise
from training.world.task import Task
from training.world.world import PESFT_SEEDS, SLICES, make_task, require_training_seed

CHUNK = 128  # questions answered at once

Codes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OwnTrace:
    """A response to one question.

    Attributes:
        task_id: of the question.
        slice: of the world.
        kind: the task's family.
        question: its text.
        question_codes: its image.
        steps: text and codes of each step.
        answer: the response's, None if it has none.
        right: whether the answer is the reference.
        well_formed: whether the response ends and nests as the template says.
        sureness: mean log-probability of the codes of its least likely image, -inf without images.
        drawings: right drawings and all of them, by the world's verdict.
    """

    task_id: str
    slice: str
    kind: str
    question: str
    question_codes: Codes
    steps: tuple[tuple[str, Codes | None], ...]
    answer: str | None
    right: bool
    well_formed: bool
    sureness: float
    drawings: tuple[int, int]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> OwnTrace:
        """Parse one stored line."""
        steps = tuple((text, None if codes is None else tuple(codes)) for text, codes in data["steps"])
        codes, drawings = tuple(data["question_codes"]), tuple(data["drawings"])
        return cls(**{**data, "question_codes": codes, "steps": steps, "drawings": drawings})

    def row(self, loaded: LoadedCheckpoint) -> dict[str, Any]:
        """As a row of the authors' format, the images as token ids."""
        ids = loaded.vocab.image_ids
        steps = [(text, None if codes is None else ids(codes)) for text, codes in self.steps]
        answer = self.answer or ""
        return trace_row(self.question, [ids(self.question_codes)], steps, answer, id=self.task_id, slice=self.slice)


def answer_all(loaded: LoadedCheckpoint, tasks: Sequence[Task], *, samples: int, slots: int = 64) -> list[OwnTrace]:
    """`samples` responses to each task at temperature 1, in order.

    Raises:
        ValueError: the checkpoint cannot read images.
    """
    answered = ask(loaded, tasks, num_slots=slots, temperature=1.0, samples=samples)
    asked = [task for task in tasks for _ in range(samples)]
    return [_own(loaded, task, *answer) for task, answer in zip(asked, answered, strict=True)]


def _own(loaded: LoadedCheckpoint, task: Task, seen: Codes, completion: Completion) -> OwnTrace:
    response: Response = read_response(loaded, completion.token_ids, seen, task)
    return OwnTrace(
        task_id=task.task_id,
        slice=task.slice,
        kind=task.family,
        question=task.question,
        question_codes=seen,
        steps=response.steps,
        answer=response.answer,
        right=is_right(response.answer, task.answer),
        well_formed=response.well_formed,
        sureness=sureness(completion),
        drawings=(response.drawings_right, response.drawings_total),
    )


def sureness(completion: Completion) -> float:
    """Mean log-probability of the codes of the least likely image; -inf without images."""
    means, codes = [], list[float]()
    for byte, logprob in zip([*completion.mask_bytes, Legal.FORCED], [*completion.logprobs, 0.0], strict=True):
        if byte == Legal.CODE:
            codes.append(logprob)
        elif codes:
            means.append(sum(codes) / len(codes))
            codes = []
    return min(means, default=-math.inf)


def select(responses: Iterable[OwnTrace], *, each: int, keep_share: float) -> list[OwnTrace]:
    """The traces to learn from, in the order of their questions.

    Args:
        responses: all responses to all questions.
        each: kept of a question, at most; of equal responses one counts.
        keep_share: share of those that is kept of each kind of question, the surest.
    """
    by_question: dict[str, list[OwnTrace]] = defaultdict(list)
    for response in responses:
        by_question[response.task_id].append(response)
    passed: list[OwnTrace] = []
    for same in by_question.values():
        counts = Counter(normalise(one.answer) for one in same if one.answer is not None)
        most = max(counts.values(), default=0)
        good = [one for one in same if one.right and one.well_formed and one.answer is not None]
        different = {one.steps: one for one in reversed(good) if counts[normalise(one.answer or "")] == most}.values()
        passed += sorted(different, key=lambda one: -one.sureness)[:each]
    by_kind: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, one in enumerate(passed):
        by_kind[one.slice, one.kind].append(number)
    kept: list[int] = []
    for numbers in by_kind.values():
        surest = sorted(numbers, key=lambda number: -passed[number].sureness)
        kept += surest[: max(1, round(keep_share * len(surest)))]
    return [passed[number] for number in sorted(kept)]


def report(responses: Sequence[OwnTrace], kept: Sequence[OwnTrace]) -> dict[str, Any]:
    """What was drawn and kept, and how right the drawings are, overall and by kind."""
    found = {"all": _counts(responses, kept)}
    for kind in sorted({one.kind for one in responses}):
        of_kind, kept_of_kind = ([one for one in some if one.kind == kind] for some in (responses, kept))
        found[kind] = _counts(of_kind, kept_of_kind)
    return found


def _counts(responses: Sequence[OwnTrace], kept: Sequence[OwnTrace]) -> dict[str, Any]:
    def share(numbers: Iterable[tuple[int, int]]) -> float | None:
        right, total = map(sum, zip(*[(0, 0), *numbers], strict=True))
        return round(right / total, 4) if total else None

    return {
        "questions": len({one.task_id for one in responses}),
        "responses": len(responses),
        "answers_right": share((one.right, 1) for one in responses),
        "drawings_right": share(one.drawings for one in responses),
        "kept": len(kept),
        "kept_questions": len({one.task_id for one in kept}),
        "kept_drawings_right": share(one.drawings for one in kept),
        "kept_all_drawings_right": share((one.drawings[0] == one.drawings[1], 1) for one in kept),
    }


def _collect(loaded: LoadedCheckpoint, out: Path, args: argparse.Namespace) -> list[OwnTrace]:
    """Answer chunk by chunk; finished chunks are read back."""
    done = out / "responses"
    done.mkdir(parents=True, exist_ok=True)
    responses: list[OwnTrace] = []
    for start in tqdm(range(0, args.tasks, CHUNK), desc="questions", unit_scale=CHUNK, mininterval=5):
        path = done / f"{start:06d}.jsonl"
        if not path.exists():
            seeds = range(args.first_seed + start, args.first_seed + min(start + CHUNK, args.tasks))
            tasks = [make_task(SLICES[seed % len(SLICES)], require_training_seed(seed)) for seed in seeds]
            answered = answer_all(loaded, tasks, samples=args.samples)
            _write(path, (asdict(one) for one in answered))
        responses += [OwnTrace.from_json(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    return responses


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one row of JSON a line."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_file(path, lambda temporary: temporary.write_text(text, "utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.zero.own_traces", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a name or a folder")
    parser.add_argument("--tasks", type=int, default=4_000)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--each", type=int, default=2, help="traces of a question, at most")
    parser.add_argument("--keep-share", type=float, default=1.0, help="of each kind of question, the surest")
    parser.add_argument("--first-seed", type=int, default=PESFT_SEEDS.start + 5_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if min(args.tasks, args.samples, args.each) < 1 or not 0.0 < args.keep_share <= 1.0:
        parser.error("--tasks, --samples and --each are at least 1, and --keep-share lies in (0, 1]")
    torch.set_num_threads(args.threads)
    try:
        loaded = load_checkpoint(resolve(args.checkpoint))
        responses = _collect(loaded, args.out, args)
    except (CheckpointError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    kept = select(responses, each=args.each, keep_share=args.keep_share)
    _write(args.out / "traces.jsonl", (one.row(loaded) for one in kept))
    found = report(responses, kept)
    write_file(args.out / "report.json", lambda path: path.write_text(json.dumps(found, indent=1) + "\n", "utf-8"))
    sys.stdout.write(json.dumps(found["all"]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
