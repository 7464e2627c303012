"""Report of a bootstrapping run, in numbers and on a contact sheet. Knows drawn chains and codes; no jobs or files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.checkpoint.manifest import Perception
from model.images.codes import copied_share, decode_codes

if TYPE_CHECKING:
    from model.nets.vq import VQModel
    from training.zero.visualiser import Candidate, Codes, DrawnChain, DrawnStep

BINS = 24
TILE, GAP, TEXT_WIDTH, LINE = 96, 6, 300, 15
MAX_SHOWN_CANDIDATES = 8
_GREEN, _RED, _GREY, _BLACK = (0, 140, 60), (205, 40, 40), (190, 190, 190), (20, 20, 20)


def bootstrap_report(drawn: Sequence[DrawnChain], perception: Perception) -> dict[str, Any]:
    """Counts, shares, diversity and histograms of all drawings.

    * ``blank_share``, ``copied_share``: of all candidates;
    * ``diversity``: mean pairwise code distance (share of positions at which two images differ) among all kept
      images, among the candidates of one step, and of a kept image from the one before it;
    * ``tv``: histogram of the energies E_2D of all candidates; ``scores``: of 1 / (1 + E_2D / tau);
    * ``checkers``: if the world knows the right image: how often candidates, kept images and images of accepted traces
      are right, and how score and log-probability correlate with that. Never used for selection.
    """
    steps = [step for one in drawn for step in one.steps]
    candidates = [c for step in steps for c in step.candidates]
    kept = [candidate for one in drawn for candidate in _kept(one)]
    accepted = sum(one.rejected is None for one in drawn)
    return {
        "chains": len(drawn),
        "accepted": accepted,
        "rejected": dict(sorted(Counter(one.rejected for one in drawn if one.rejected is not None).items())),
        "rejected_chains": [one.chain_id for one in drawn if one.rejected is not None][:50],
        "by_slice": _by_slice(drawn),
        "steps": len(steps),
        "steps_without_picture": sum(step.kept is None for step in steps),
        "pictures_drawn": len(candidates),
        "pictures_kept": len(kept),
        "pictures_broken": sum(step.broken for step in steps),
        "candidates_rejected": sum(not c.accepted for c in candidates),
        "blank_share": _share(sum(c.flat for c in candidates), len(candidates)),
        "copied_share": _share(sum(c.copied for c in candidates), len(candidates)),
        "diversity": {
            "kept": pairwise_distance([c.codes for c in kept]),
            "candidates_of_a_step": _mean(
                [d for step in steps if (d := pairwise_distance([c.codes for c in step.candidates])) is not None]
            ),
            "from_picture_before": _mean([1.0 - copied_share(codes, before) for before, codes in _changes(drawn)]),
        },
        "tv": _histogram([c.energy for c in candidates], None)
        | {"tau": perception.tau, "reference_p05": perception.energy_p95, "mean_kept": _mean([c.energy for c in kept])},
        "scores": _histogram([c.perception for c in candidates], (0.0, 1.0))
        | {"mean_kept": _mean([c.score for c in kept])},
        "checkers": _checkers(candidates, kept, [c for one in drawn if one.rejected is None for c in _kept(one)]),
    }


def pairwise_distance(images: Sequence[Codes]) -> float | None:
    """Mean share of positions at which two images differ, over all pairs; None for fewer than two.

    Counted position by position: the pairs that agree are those within the groups of one code.
    """
    total = len(images)
    if total < 2:
        return None
    agreeing = sum(count * (count - 1) for column in zip(*images, strict=True) for count in Counter(column).values())
    return round(1.0 - agreeing / (len(images[0]) * total * (total - 1)), 6)


def _kept(one: DrawnChain) -> list[Candidate]:
    return [step.candidates[step.kept] for step in one.steps if step.kept is not None]


def _changes(drawn: Sequence[DrawnChain]) -> list[tuple[Codes, Codes]]:
    """Every kept image with the previous one."""
    out = []
    for one in drawn:
        before = one.question_codes
        for step in one.steps:
            if (codes := step.image) is not None:
                if before is not None:
                    out.append((before, codes))
                before = codes
    return out


def _by_slice(drawn: Sequence[DrawnChain]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[DrawnChain]] = defaultdict(list)
    for one in drawn:
        groups[one.slice].append(one)
    out: dict[str, dict[str, Any]] = {}
    for name in sorted(groups):
        kept = [candidate for one in groups[name] for candidate in _kept(one)]
        out[name] = {
            "chains": len(groups[name]),
            "accepted": sum(one.rejected is None for one in groups[name]),
            "kept_right": _right(kept),
        }
    return out


def _checkers(
    candidates: Sequence[Candidate], kept: Sequence[Candidate], in_traces: Sequence[Candidate]
) -> dict[str, Any] | None:
    judged = [c for c in candidates if c.right is not None]
    if not judged:
        return None
    right = [float(bool(c.right)) for c in judged]
    return {
        "judged": len(judged),
        "candidates_right": _right(judged),
        "kept_right": _right(kept),
        "traces_right": _right(in_traces),
        "score_correlation": correlation([c.perception for c in judged], right),
        "confidence_correlation": correlation([c.logprob for c in judged], right),
    }


def _right(candidates: Sequence[Candidate]) -> float | None:
    verdicts = [c.right for c in candidates if c.right is not None]
    return _share(sum(verdicts), len(verdicts))


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation; None if either is constant."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    if len(a) < 2 or a.std() == 0.0 or b.std() == 0.0:
        return None
    return round(float(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std())), 6)


def _histogram(values: Sequence[float], bounds: tuple[float, float] | None) -> dict[str, Any]:
    if not values:
        return {"edges": [], "counts": [], "mean": None, "quantiles": {}}
    array = np.asarray(values, float)
    counts, edges = np.histogram(array, BINS, bounds or (0.0, max(float(array.max()), 1e-6)))
    quantiles = {f"p{q:02d}": round(float(np.quantile(array, q / 100)), 6) for q in (5, 25, 50, 75, 95)}
    return {
        "edges": [round(float(edge), 6) for edge in edges],
        "counts": counts.tolist(),
        "mean": _mean(values),
        "quantiles": quantiles,
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 6) if len(values) else None


def _share(part: int, total: int) -> float | None:
    return round(part / total, 6) if total else None


def contact_sheet(vq: VQModel, drawn: Sequence[DrawnChain], *, max_steps: int = 40) -> Image.Image:
    """Contact sheet: a row for each step with the previous image, the candidates and the step's text.

    The kept candidate has a green frame, rejected ones (flat or copied) a red one. Chains are chosen evenly until
    ``max_steps`` rows are full.
    """
    chosen = _evenly([one for one in drawn if one.steps], max_steps)
    shown = min(MAX_SHOWN_CANDIDATES, max((len(s.candidates) for one in chosen for s in one.steps), default=1))
    width = GAP + (1 + shown) * (TILE + GAP) + TEXT_WIDTH
    heights = [2 * LINE + GAP + len(one.steps) * (TILE + GAP) for one in chosen]
    sheet = Image.new("RGB", (width, GAP + max(sum(heights), LINE)), "white")
    draw, top = ImageDraw.Draw(sheet), GAP
    if not chosen:
        draw.text((GAP, 0), "nothing was drawn", fill=_BLACK, font=_font())
    for one, height in zip(chosen, heights, strict=True):
        verdict = "trace" if one.rejected is None else f"rejected: {one.rejected}"
        head = _wrap(f"{one.chain_id} ({verdict})  {one.question}  answer: {one.answer}", width - 2 * GAP, draw)
        draw.multiline_text((GAP, top), "\n".join(head[:2]), fill=_BLACK, font=_font(), spacing=2)
        row, before = top + 2 * LINE + GAP, one.question_codes
        for step in one.steps:
            _paste_row(sheet, draw, vq, row, before, step, shown)
            before = step.image or before
            row += TILE + GAP
        top += height
    return sheet


def _paste_row(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    vq: VQModel,
    top: int,
    before: Codes | None,
    step: DrawnStep,
    shown: int,
) -> None:
    visible = _visible(step, shown)
    images = decode_codes(vq, [*([] if before is None else [before]), *(step.candidates[i].codes for i in visible)])
    frames = ([] if before is None else [_GREY]) + [
        _GREEN if i == step.kept else _GREY if step.candidates[i].accepted else _RED for i in visible
    ]
    start = 0 if before is not None else 1
    for column, (image, frame) in enumerate(zip(images, frames, strict=True), start):
        left = GAP + column * (TILE + GAP)
        sheet.paste(image.resize((TILE - 4, TILE - 4), Image.Resampling.NEAREST), (left + 2, top + 2))
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=frame, width=2)
    left = GAP + (1 + shown) * (TILE + GAP)
    lines = _wrap(step.text, TEXT_WIDTH - GAP, draw)[: TILE // LINE - 1]
    if step.kept is not None:
        kept = step.candidates[step.kept]
        verdict = "" if kept.right is None else ", right" if kept.right else ", wrong"
        lines.append(f"R_Pe {kept.score:.2f}{verdict}")
    else:
        lines.append("no candidate was kept")
    draw.multiline_text((left, top), "\n".join(lines), fill=_BLACK, font=_font(), spacing=2)


def _visible(step: DrawnStep, shown: int) -> list[int]:
    """The first candidates, including the kept one."""
    places = list(range(min(shown, len(step.candidates))))
    if step.kept is not None and step.kept not in places:
        places[-1] = step.kept
    return places


def _evenly(drawn: Sequence[DrawnChain], max_steps: int) -> list[DrawnChain]:
    """Chains spread evenly, with at most ``max_steps`` steps in total (at least one chain)."""
    mean = sum(len(one.steps) for one in drawn) / max(1, len(drawn))
    count = min(len(drawn), max(1, int(max_steps / max(mean, 1.0))))
    spread = [drawn[i * len(drawn) // count] for i in range(count)] if drawn else []
    out: list[DrawnChain] = []
    for one in spread:
        if out and sum(len(o.steps) for o in out) + len(one.steps) > max_steps:
            break
        out.append(one)
    return out


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=12)


def _wrap(text: str, width: int, draw: ImageDraw.ImageDraw) -> list[str]:
    """Wrap words into lines; longer words are cut."""
    font, lines = _font(), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            while draw.textlength(word, font=font) > width and len(word) > 1:
                word = word[:-1]
            lines.append(word)
    return [line for line in lines if line] or [""]
