"""A stored trace as rewards see it: its answer, its steps with their codes, and the parts of its reward.

The same parts as in training: R_Fmt from the stored tokens, R_Pe from the stored energies of its images.
In traces of earlier versions, a first drawing that copies the question's image is not noticed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from app.traces.records.tokens import Response
from model.text.parser import TraceParser
from model.text.template import Template
from training.scoring.guards import ImageScore, Perception, aggregate, changes_nothing, guarded_score

COPIED_SHARE = 0.99  # as RewardHyperparameters has it by default


@dataclass(frozen=True)
class TraceParts:
    """A finished trace.

    Attributes:
        question: its text.
        slice: of its task.
        answer: the final answer.
        reference: of its task.
        steps: text and codes of each.
        format: R_Fmt.
        images: step and score of each complete drawing.
        perception: R_Pe; None if the energy of an image is unknown.
        rights: the checkers' verdict on each drawing, by step.
        drawings: how many drawings are right, and of how many; None without a verdict.
        num_tokens: of the response.
        image_ids: of the question's images, and of the drawing of each step.
    """

    question: str
    slice: str | None
    answer: str | None
    reference: str | None
    steps: Sequence[tuple[str, tuple[int, ...] | None]]
    format: float
    images: Sequence[tuple[int, ImageScore | None]]
    perception: float | None
    rights: Mapping[int, bool]
    drawings: tuple[int, int] | None
    num_tokens: int
    image_ids: tuple[list[str], dict[int, str]]

    @property
    def functional(self) -> float | None:
        """The share of right drawings, without those that cannot be judged, as `reward.functional` weights it.

        None without a task, and for a trace of an earlier version, which has no verdict on any of its drawings.
        """
        if self.drawings is None or (self.images and not self.rights):
            return None
        right, total = self.drawings
        unknown = sum(step not in self.rights for step, _ in self.images)
        return right / max(1, total - unknown)


def parts_of(
    trace: Mapping[str, Any],
    response: Response,
    template: Template,
    perception: Perception | None,
    *,
    reference: str | None = None,
    identity_steps: AbstractSet[int] = frozenset(),
) -> TraceParts:
    """The parts of a finished trace.

    Args:
        trace: the API's JSON.
        response: its stored tokens.
        template: of its checkpoint.
        perception: the scale of the perception score, of its checkpoint's manifest.
        reference: the answer of its task, if it has one.
        identity_steps: steps of the task that change nothing.
    """
    ids = [token for step in response.steps for token in step.ids] + list(response.last.ids)
    parser, scale = _parsed(template, ids), perception or Perception()
    stored = {step["index"]: step.get("image") for step in trace["steps"]}
    images: list[tuple[int, ImageScore | None]] = []
    for k, (text, codes) in enumerate(parser.steps, 1):
        if codes is None:
            continue
        stats = (stored.get(k) or {}).get("stats") or {}
        may_copy = k in identity_steps or changes_nothing(text)
        copied = 0.0 if may_copy else stats.get("copied", 0.0)
        known = guarded_score(codes, stats["tv"], copied, scale, COPIED_SHARE) if "tv" in stats else None
        images.append((k, known))
    scores = [score.score for _, score in images if score is not None]
    verdict = trace.get("verdict")
    return TraceParts(
        question=trace["question"],
        slice=str(trace["task_id"]).partition("-")[0] if trace.get("task_id") else None,
        answer=trace["answer"],
        reference=reference,
        steps=tuple(parser.steps),
        format=float(parser.well_formed),
        images=images,
        perception=aggregate(scores) if len(scores) == len(images) else None,
        rights={index: image["right"] for index, image in stored.items() if image and image.get("right") is not None},
        drawings=None if verdict is None else (verdict["drawings_right"], verdict["drawings_total"]),
        num_tokens=len(ids),
        image_ids=(
            [image["image_id"] for image in trace["images"]],
            {index: image["image_id"] for index, image in stored.items() if image},
        ),
    )


def _parsed(template: Template, ids: Sequence[int]) -> TraceParser:
    parser = template.parser()
    for token in ids:
        parser.feed(token)
    parser.finish()
    return parser
