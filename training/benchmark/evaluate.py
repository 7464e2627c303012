"""Held-out evaluation on the task world: answers, drawings, malformed and blank images, with confidence intervals.

Greedy decoding through the serving engine. Tasks come from the evaluation seeds (from 1,000,000,000), a quarter from
each slice; other levels are reported separately. A drawing is judged by the world's checkers against the decoded
previous image. A text-only control gets the same questions and must not draw.

Launch: ``omni-r1 evaluate CHECKPOINT [--tasks 1000] [--level normal|hard|1 … 8] [--first-seed N] [--quant int8|fp8]``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.manifest import Perception
from model.engine.engine import Engine
from model.engine.sequence import Completion, SamplingParams, sample_seed
from model.images.codes import decode_codes, encode_images, image_energies, is_flat
from model.quantisation import QuantKind
from training.benchmark.stats import wilson
from training.benchmark.verifying import judged_by
from training.scoring.grading import is_right
from training.world.checkers import judge_drawings
from training.world.task import Level, Task
from training.world.world import EVAL_SEED_MIN, SLICES, make_task, parse_level


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's result for one task."""

    task_id: str
    slice: str
    family: str
    answer: str | None
    reference: str
    right: bool
    malformed: bool
    drawings_right: int
    drawings_total: int
    pictures: int
    blank: int
    tokens: int


def evaluation_tasks(count: int, *, level: Level = "normal", first: int = EVAL_SEED_MIN) -> list[Task]:
    """`count` held-out tasks, the slices in turn. Raises ValueError beyond seed 2^53-1."""
    return [make_task(SLICES[i % len(SLICES)], first + i, level=level) for i in range(count)]


def evaluate(
    loaded: LoadedCheckpoint,
    tasks: Sequence[Task],
    *,
    num_slots: int = 64,
    max_images: int | None = None,
    temperature: float = 0.0,
    samples: int = 1,
    candidates: int = 1,
    verifier: LoadedCheckpoint | None = None,
    on_finish: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Answer the tasks and judge the answers: `samples` predictions of the first task, then of the next.

    Args:
        loaded: the checkpoint.
        tasks: the tasks.
        num_slots: concurrent sequences.
        max_images: maximum images per response; 0 for a text-only control, None for as many as fit.
        temperature: of the sampling; 0 is greedy.
        samples: responses to each task, each with random numbers of its own.
        candidates: drawn for each image; the verifier's choice goes on.
        verifier: the checkpoint that judges them, None for the answering one.
        on_finish: called with the number of finished responses.

    Raises:
        ValueError: the checkpoint cannot read images, or cannot be judged by the verifier.
    """
    answered = ask(
        loaded,
        tasks,
        num_slots=num_slots,
        max_images=max_images,
        temperature=temperature,
        samples=samples,
        candidates=candidates,
        verifier=verifier,
        on_finish=on_finish,
    )
    asked = [task for task in tasks for _ in range(samples)]
    return [_judge(loaded, task, *answer) for task, answer in zip(asked, answered, strict=True)]


def ask(
    loaded: LoadedCheckpoint,
    tasks: Sequence[Task],
    *,
    num_slots: int = 64,
    max_images: int | None = None,
    temperature: float = 0.0,
    samples: int = 1,
    candidates: int = 1,
    verifier: LoadedCheckpoint | None = None,
    on_finish: Callable[[int], None] | None = None,
) -> list[tuple[tuple[int, ...], Completion]]:
    """Answer the tasks, each answer with the codes of its question's image.

    Arguments and errors are those of :func:`evaluate`.
    """
    if loaded.vq is None:
        raise ValueError(f"{loaded.name} has no VQ: it cannot read images")
    template = loaded.template
    questions = _encode(loaded, tasks)
    prompts = [template.prompt_ids(task.question, [codes]) for task, codes in zip(tasks, questions, strict=True)]
    engine = Engine(loaded.transformer, loaded.vocab, template, num_slots=num_slots, admissions_per_step=num_slots)
    params = [
        SamplingParams(
            temperature=temperature, seed=sample_seed(task.seed, 1), max_images=max_images, candidates=candidates
        )
        for task in tasks
    ]
    judge = judged_by(loaded, verifier or loaded) if candidates > 1 else None
    completions = engine.generate(prompts, params, num_samples=samples, verifier=judge, on_finish=on_finish)
    return list(zip([codes for codes in questions for _ in range(samples)], completions, strict=True))


def _encode(loaded: LoadedCheckpoint, tasks: Sequence[Task]) -> list[tuple[int, ...]]:
    assert loaded.vq is not None
    out: list[tuple[int, ...]] = []
    for start in range(0, len(tasks), 64):
        out += [tuple(codes) for codes in encode_images(loaded.vq, [t.image for t in tasks[start : start + 64]])]
    return out


@dataclass(frozen=True, slots=True)
class Response:
    """A response parsed with the checkpoint's template. Drawings are judged if the world knows the task.

    ``unmarked``: the answer is the text after the last image, since the response has no answer mark.
    """

    answer: str | None
    steps: tuple[tuple[str, tuple[int, ...] | None], ...]
    well_formed: bool
    blank: int
    drawings_right: int
    drawings_total: int
    unmarked: bool = False

    @property
    def images(self) -> list[tuple[int, ...]]:
        """Codes of the complete images."""
        return [codes for _, codes in self.steps if codes is not None]


def read_response(
    loaded: LoadedCheckpoint, token_ids: Sequence[int], seen: tuple[int, ...] | None, task: Task | None
) -> Response:
    """Parse a response and judge its drawings.

    Args:
        loaded: the answering checkpoint.
        token_ids: the response.
        seen: codes of the question's image.
        task: the task of the world, if any.
    """
    parser = loaded.template.parser()
    for token in token_ids:
        parser.feed(token)
    parser.finish()
    steps = tuple(parser.steps)
    drawn = [codes for _, codes in steps if codes is not None]
    right, total = 0, len(drawn)
    if task is not None and seen is not None and loaded.vq is not None and loaded.can_draw:
        images = iter(decode_codes(loaded.vq, [seen, *drawn]))
        before = next(images)
        right, total = judge_drawings(task, before, [next(images) if codes else None for _, codes in steps])
    perception = loaded.manifest.perception or Perception()
    energies = image_energies(loaded.vq, drawn) if loaded.vq is not None else [0.0] * len(drawn)
    blank = sum(is_flat(codes, perception, energy) for codes, energy in zip(drawn, energies, strict=True))
    return Response(parser.answer, steps, parser.well_formed, blank, right, total, parser.unmarked)


def _judge(loaded: LoadedCheckpoint, task: Task, question: tuple[int, ...], completion: Completion) -> Prediction:
    response = read_response(loaded, completion.token_ids, question, task)
    return Prediction(
        task_id=task.task_id,
        slice=task.slice,
        family=task.family,
        answer=response.answer,
        reference=task.answer,
        right=is_right(response.answer, task.answer),
        malformed=not response.well_formed,
        drawings_right=response.drawings_right,
        drawings_total=response.drawings_total,
        pictures=len(response.images),
        blank=response.blank,
        tokens=len(completion.token_ids),
    )


def summarize(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Shares with intervals: overall, per slice and per family. The mean weights slices by their number of tasks.

    Of the traces with drawings, `all_drawings_right` is the share in which each is right, `read_right` the accuracy of
    these and `right_with_wrong_drawings` that of the others; None where there are none.
    """
    groups: dict[str, list[Prediction]] = defaultdict(list)
    for p in predictions:
        groups[p.slice].append(p)
        groups[f"{p.slice}/{p.family}"].append(p)
    return {"all": _shares(predictions), **{name: _shares(groups[name]) for name in sorted(groups)}}


def _shares(predictions: Sequence[Prediction]) -> dict[str, Any]:
    total, right = len(predictions), sum(p.right for p in predictions)
    drawings = sum(p.drawings_total for p in predictions)
    low, high = wilson(right, total)
    images = sum(p.pictures for p in predictions)
    drawn = [p for p in predictions if p.drawings_total] if images else []
    faultless = [p.drawings_right == p.drawings_total for p in drawn]
    return {
        "tasks": total,
        "accuracy": round(right / max(total, 1), 4),
        "accuracy_ci95": [round(low, 4), round(high, 4)],
        "drawings_right": round(sum(p.drawings_right for p in predictions) / max(drawings, 1), 4),
        "malformed": round(sum(p.malformed for p in predictions) / max(total, 1), 4),
        "blank": round(sum(p.blank for p in predictions) / max(images, 1), 4),
        "pictures": round(images / max(total, 1), 3),
        "tokens": round(sum(p.tokens for p in predictions) / max(total, 1), 1),
        "all_drawings_right": _share_of(faultless),
        "read_right": _share_of([p.right for p, good in zip(drawn, faultless, strict=True) if good]),
        "right_with_wrong_drawings": _share_of([p.right for p, good in zip(drawn, faultless, strict=True) if not good]),
    }


def _share_of(verdicts: Sequence[bool]) -> float | None:
    return round(sum(verdicts) / len(verdicts), 4) if verdicts else None


def table(summary: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    lines = [
        "| tasks | n | accuracy | 95 % interval | drawings right | malformed | blank |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in summary.items():
        low, high = row["accuracy_ci95"]
        lines.append(
            f"| {name} | {row['tasks']} | {row['accuracy']:.3f} | {low:.3f} - {high:.3f} | {row['drawings_right']:.3f} "
            f"| {row['malformed']:.4f} | {row['blank']:.4f} |"
        )
    return "\n".join(lines)


def error_modes(summary: dict[str, Any]) -> str:
    """Where answers go wrong, in drawing or in reading the drawings, as a Markdown table."""
    lines = ["| tasks | all drawings right | of these answered right | of the others |", "|---|---|---|---|"]
    for name, row in summary.items():
        shares = [row[key] for key in ("all_drawings_right", "read_right", "right_with_wrong_drawings")]
        lines.append(f"| {name} | {' | '.join('-' if share is None else f'{share:.3f}' for share in shares)} |")
    return "\n".join(lines)


def run(
    checkpoint: str | Path,
    *,
    tasks: int = 1_000,
    level: Level = "normal",
    first_seed: int = EVAL_SEED_MIN,
    out: Path | None = None,
    text_only: bool = False,
    candidates: int = 1,
    verifier: str | Path | None = None,
    quant: QuantKind | None = None,
    on_finish: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint folder; with ``out``, write predictions (jsonl) and summary (json) there.

    ``level`` may be a text: "5" is 5. With several ``candidates`` an image, the checkpoint in folder ``verifier``
    chooses among them, or the evaluated one itself. ``quant`` quantises the matrices of both.

    Raises:
        ValueError: an unknown level, seeds beyond 2^53-1, or a checkpoint that is no verifier.
        CheckpointError: the folder is not a valid checkpoint.
    """
    level = parse_level(str(level))
    chosen = evaluation_tasks(tasks, level=level, first=first_seed)
    loaded = load_checkpoint(checkpoint, quant=quant)
    predictions = evaluate(
        loaded,
        chosen,
        max_images=0 if text_only else None,
        candidates=candidates,
        verifier=None if verifier is None or candidates == 1 else load_checkpoint(verifier, quant=quant),
        on_finish=on_finish,
    )
    summary = summarize(predictions)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        rows = "".join(json.dumps(asdict(p)) + "\n" for p in predictions)
        (out / "predictions.jsonl").write_text(rows)
        about: dict[str, Any] = {
            "checkpoint": loaded.name,
            "level": level,
            "first_seed": first_seed,
            "text_only": text_only,
        }
        if quant is not None:
            about["quant"] = quant
        if candidates > 1:
            about |= {"candidates": candidates, "verifier": loaded.name if verifier is None else Path(verifier).name}
        (out / "summary.json").write_text(json.dumps({**about, "results": summary}, indent=2) + "\n")
    return summary
