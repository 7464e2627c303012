"""Answers of a benchmark and their statistics: shares with intervals, by slice and overall, and paired comparisons.

Plain values; knows no models, engines or files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from training.benchmark.interventions import Effect, summarize_effects
from training.benchmark.stats import paired, wilson
from training.scoring.judge import Verdict


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The rules' verdict: right or not, the graded score in [0, 1] and the deciding check."""

    right: bool
    score: float
    check: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A checkpoint's answer to one question. ``right`` is the judge's verdict if available, else the rules'."""

    item_id: str
    slice: str
    group: str | None
    question: str
    reference: str
    answer: str | None
    texts: tuple[str, ...]
    rules: Verdicts
    judge: Verdict | None
    malformed: bool
    pictures: int
    blank: int
    drawings_right: int | None
    drawings_total: int | None
    tokens: int
    finish_reason: str
    error: str | None = None
    unmarked: bool = False  # the answer is the text after the last image: the response has no answer mark
    effects: tuple[Effect, ...] | None = None  # of replacing its images; None: not asked
    right_with_reference: bool | None = None  # with reference images only; None: not asked, or unknown

    @property
    def right(self) -> bool:
        """The effective verdict."""
        if self.judge is not None and self.judge.right is not None:
            return self.judge.right
        return self.rules.right

    def judged(self, verdict: Verdict) -> Answer:
        """The answer with the endpoint's verdict in addition to the rules'."""
        return replace(self, judge=verdict)

    def to_json(self) -> dict[str, Any]:
        """Convert to one line of the predictions."""
        return {**asdict(self), "right": self.right}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Answer:
        """Parse the result of :meth:`to_json`."""
        values = {key: value for key, value in data.items() if key != "right"}
        values["texts"] = tuple(values["texts"])
        values["rules"] = Verdicts(**values["rules"])
        values["judge"] = None if values["judge"] is None else Verdict(**values["judge"])
        if values.get("effects") is not None:
            values["effects"] = tuple(Effect(**effect) for effect in values["effects"])
        return cls(**values)


def summarize_answers(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """Shares over ``all`` (weighted by samples), by slice and by group within a slice (``slice/group``)."""
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.slice].append(answer)
        if answer.group is not None:
            groups[f"{answer.slice}/{answer.group}"].append(answer)
    groups["all"] = list(answers)  # also where only some questions have a slice
    return {name: _shares(groups[name]) for name in ("all", *sorted(groups.keys() - {"all"}))}


def _shares(answers: Sequence[Answer]) -> dict[str, Any]:
    total, right = len(answers), sum(a.right for a in answers)
    low, high = wilson(right, total)
    row: dict[str, Any] = {
        "tasks": total,
        "right": right,
        "accuracy": _share(right, total),
        "accuracy_ci95": [round(low, 4), round(high, 4)],
        "mean_score": round(sum(a.rules.score for a in answers) / max(1, total), 4),
        "malformed": _share(sum(a.malformed for a in answers), total),
        "unanswered": sum(a.answer is None for a in answers),
        "unmarked": sum(a.unmarked for a in answers),
        "errors": sum(a.error is not None for a in answers),
        "blank": _share(sum(a.blank for a in answers), sum(a.pictures for a in answers)),
        "pictures": round(sum(a.pictures for a in answers) / max(1, total), 3),
        "tokens": round(sum(a.tokens for a in answers) / max(1, total), 1),
    }
    drawings = [(a.drawings_right or 0, a.drawings_total) for a in answers if a.drawings_total is not None]
    if drawings:
        row["drawings_right"] = _share(sum(r for r, _ in drawings), sum(t for _, t in drawings))
    verdicts = [(a.rules.right, a.judge.right) for a in answers if a.judge is not None]
    if verdicts:
        said = [(rules, judge) for rules, judge in verdicts if judge is not None]
        row["judge"] = {
            "judged": len(said),
            "failed": len(verdicts) - len(said),
            "accuracy": _share(sum(judge for _, judge in said), len(said)),
            "agrees_with_rules": _share(sum(rules == judge for rules, judge in said), len(said)),
        }
        row["accuracy_by_rules"] = _share(sum(rules for rules, _ in verdicts), len(verdicts))
    replaced = [a for a in answers if a.effects is not None]
    if replaced:
        effects = [a.effects or () for a in replaced]
        row["images"] = summarize_effects(
            effects, [a.rules.right for a in replaced], [a.right_with_reference for a in replaced]
        )
    return row


def _share(part: int, total: int) -> float | None:
    return round(part / total, 4) if total else None


def flat_metrics(summary: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The summary as metrics: ``accuracy/all``, ``accuracy/<slice>``, ``drawings/right``, ``malformed/share`` ...

    With interventions also ``images/causal_share``, ``images/oracle_gain`` and both by slice.
    """
    whole = summary["all"]
    values = {f"accuracy/{name}": row["accuracy"] for name, row in summary.items() if "/" not in name}
    values |= {
        "drawings/right": whole.get("drawings_right"),
        "malformed/share": whole["malformed"],
        "pictures/blank_share": whole["blank"],
        "response/len": whole["tokens"],
        "response/images": whole["pictures"],
        "judge/agreement": whole.get("judge", {}).get("agrees_with_rules"),
    }
    for name, row in summary.items():
        where = "" if name == "all" else f"/{name}"
        if "/" not in name and "images" in row:
            for key in ("causal_share", "oracle_gain"):
                values[f"images/{key}{where}"] = (row["images"].get(key) or [None])[0]
    return {key: float(value) for key, value in values.items() if value is not None}


def compare(
    first_name: str, first: Sequence[Answer], second_name: str, second: Sequence[Answer], *, seed: int = 0
) -> dict[str, Any]:
    """Compare the second checkpoint with the first, in pairs, overall and by slice.

    Raises:
        ValueError: they did not answer the same questions.
    """
    if [a.item_id for a in first] != [a.item_id for a in second]:
        raise ValueError("the two did not answer the same questions")
    slices = sorted({a.slice for a in first})
    table = {"all": paired([a.right for a in first], [a.right for a in second], seed=seed)}
    for name in slices if len(slices) > 1 else []:
        pairs = [(a.right, b.right) for a, b in zip(first, second, strict=True) if a.slice == name]
        table[name] = paired([a for a, _ in pairs], [b for _, b in pairs], seed=seed)
    return {"first": first_name, "second": second_name, "results": table}
