"""The score of an image of a trajectory, with the guards of R_Pe (docs/method). Without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model.checkpoint.manifest import Perception as Perception
from model.images.guards import is_flat, perception_score
from training.skills import Action, ActionError

ImageVerdict = Literal["ok", "capped", "flat", "copied", "malformed"]
_CALL = re.compile(r"\b(?:ZOOM|PRED)\([^()]*\)")
_NO_CHANGE = frozenset({"none", "nothing", "no change", "stay", "stays", "identity"})


@dataclass(frozen=True, slots=True)
class ImageScore:
    """One image: its energy E_2D (NaN if malformed), its score and the deciding guard."""

    energy: float
    score: float
    verdict: ImageVerdict


def guarded_score(
    codes: Sequence[int], energy: float, copied: float, perception: Perception, copied_limit: float
) -> ImageScore:
    """Score a complete image.

    Args:
        codes: of the image.
        energy: its E_2D.
        copied: share of codes that equal those of the previous image; 0 without one, or if it may be equal.
        perception: the scale of the score.
        copied_limit: from this share of equal codes on, the image is a copy.
    """
    if is_flat(codes, perception, energy):
        return ImageScore(energy, 0.0, "flat")
    if copied >= copied_limit:
        return ImageScore(energy, 0.0, "copied")
    limit = perception.energy_p95
    capped = limit is not None and energy < limit
    return ImageScore(energy, perception_score(energy, perception), "capped" if capped else "ok")


def aggregate(scores: Sequence[float], how: Literal["mean", "min"] = "mean") -> float:
    """R_Pe of a trajectory from its images' scores (Eq. 11); 0 without images."""
    if not scores:
        return 0.0
    return min(scores) if how == "min" else sum(scores) / len(scores)


def changes_nothing(text: str) -> bool:
    """Whether a step's text names an action without effect: a zoom on the whole image, PRED(none)."""
    for call in _CALL.findall(text):
        try:
            action = Action.parse(call)
        except ActionError:
            continue
        if action.name == "ZOOM" and tuple(action.args) == (0.0, 0.0, 1.0, 1.0):
            return True
        if action.name == "PRED" and str(action.args[0]).lower() in _NO_CHANGE:
            return True
    return False
