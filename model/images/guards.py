"""The perception score of an image from its energy and codes, and the guards against blank and repeated images.

Plain numbers, without torch: the server scores stored traces with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from model.checkpoint.manifest import Perception

FLAT_SHARE = 0.5  # an image is flat if one code covers more than this,
FLAT_MARGIN = 0.1  # or more than the flattest reference image plus this,
FLAT_ENERGY = 1 / 3  # or if its energy is below this share of ``energy_p95``


def perception_score(energy: float, perception: Perception) -> float:
    """s = 1 / (1 + E_2D / tau) (Eq. 8), capped at the reference images' 95th percentile if known."""
    if perception.energy_p95 is not None:
        energy = max(energy, perception.energy_p95)
    return 1.0 / (1.0 + energy / perception.tau)


def flatness(codes: Sequence[int]) -> float:
    """Share of the most common code, 0 ... 1 (1: a blank image)."""
    return max(Counter(codes).values()) / len(codes) if codes else 0.0


def is_flat(codes: Sequence[int], perception: Perception, energy: float) -> bool:
    """Whether an image is blank or nearly so: then its perception score is 0 (TV is lowest for a blank one).

    Also checks the energy E_2D, since an encoder gives a canvas of one colour several codes that look alike.
    """
    if perception.energy_p95 is not None and energy < FLAT_ENERGY * perception.energy_p95:
        return True
    limit = FLAT_SHARE
    if perception.flat_share_max is not None:
        limit = max(limit, perception.flat_share_max + FLAT_MARGIN)
    return flatness(codes) > limit


def copied_share(codes: Sequence[int], previous: Sequence[int]) -> float:
    """Share of positions whose code equals the previous image's."""
    return sum(a == b for a, b in zip(codes, previous, strict=True)) / len(codes)
