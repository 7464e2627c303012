"""Detects known failure modes of reinforcement learning from each step's metrics (docs/method, failure signs).

A sign is reported when it appears, and again only after it has been absent for a while, so that long runs do not repeat
it at every step. Knows no models or loops.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WINDOW = 3  # steps to average, so that one outlier is no sign
QUIET_STEPS = 10  # a sign is reported again after this many steps without it
BLANK_SHARE = 0.05
DEGENERATE_SHARE = 0.8
COLLAPSED_STD = 0.01
MISMATCH = {"fp32": 1e-4, "bf16": 0.5}
_WATCHED = (
    "format/error_share",
    "pictures/copied_share",
    "pictures/capped_share",
    "reward/perception_std",
    "reward/total_std",
)


class FailureSigns:
    """Takes the metrics of every step; reports failure signs."""

    def __init__(self, *, precision: str = "fp32", state: Mapping[str, Any] | None = None) -> None:
        """``state`` restores a resumed run; see :meth:`state`."""
        self._mismatch = MISMATCH[precision]
        state = state or {}
        self._start: dict[str, list[float]] = {k: list(v) for k, v in state.get("start", {}).items()}
        self._recent: dict[str, list[float]] = {k: list(v) for k, v in state.get("recent", {}).items()}
        self._seen: dict[str, int] = dict(state.get("seen", {}))

    def state(self) -> dict[str, Any]:
        """Plain values to resume from."""
        return {"start": self._start, "recent": self._recent, "seen": self._seen}

    def check(self, step: int, values: Mapping[str, float]) -> list[tuple[str, str]]:
        """Return (code, detail) of every sign that is new in this step.

        Args:
            step: from 1.
            values: its metrics.
        """
        for key in _WATCHED:
            if key in values:
                first = self._start.setdefault(key, [])
                if len(first) < WINDOW:
                    first.append(values[key])
                self._recent[key] = [*self._recent.get(key, []), values[key]][-WINDOW:]
        found = []
        for code, detail in self._signs(values):
            last = self._seen.get(code)
            if last is None or step - last > QUIET_STEPS:
                found.append((code, detail))
            self._seen[code] = step
        return found

    def _signs(self, values: Mapping[str, float]) -> list[tuple[str, str]]:
        signs: list[tuple[str, str]] = []

        def add(code: str, detail: str) -> None:
            signs.append((code, detail))

        if (share := values.get("pictures/blank_share", 0.0)) >= BLANK_SHARE:
            add(
                "blank_pictures",
                f"{share:.0%} of the pictures are blank or nearly so: look at the perception loss's "
                "weight and at how many codes are in use",
            )
        if self._collapsed("reward/perception_std") and values.get("response/images", 0.0) > 0:
            add(
                "reward_collapse",
                "all pictures earn nearly the same perception reward: tau is far from the scale of their energies",
            )
        elif self._collapsed("reward/total_std"):
            add("reward_collapse", "all trajectories earn nearly the same: there is nothing to learn from")
        if self._grown("format/error_share"):
            add(
                "format_errors_rising",
                f"{self._mean('format/error_share'):.0%} of the trajectories are not well "
                "formed, more than at the start: the KL weight is off or the format reward too small",
            )
        if (share := values.get("groups/dropped_share", 0.0)) >= DEGENERATE_SHARE:
            add(
                "degenerate_groups",
                f"in {share:.0%} of the groups every trajectory earns the same: the tasks are "
                "too easy or too hard for this checkpoint",
            )
        for code, key, what in (
            ("copied_pictures", "pictures/copied_share", "only copies the picture before"),
            ("capped_pictures", "pictures/capped_share", "is smoother than nearly all real pictures"),
        ):
            if self._grown(key):
                add(code, f"{self._mean(key):.0%} of the pictures: each {what}; the share has doubled")
        if (worst := values.get("mismatch/max", 0.0)) > self._mismatch:
            add(
                "logprob_mismatch",
                f"sampler and trainer disagree by up to {worst:.2g} nats about a token; the "
                "weights of tokens are truncated",
            )
        return signs

    def _mean(self, key: str) -> float:
        recent = self._recent.get(key, [])
        return sum(recent) / len(recent) if recent else 0.0

    def _grown(self, key: str) -> bool:
        """Doubled since the start, and grown by five points."""
        first = self._start.get(key, [])
        if len(first) < WINDOW or len(self._recent[key]) < WINDOW:
            return False
        start = sum(first) / WINDOW
        return self._mean(key) >= max(2.0 * start, start + 0.05)

    def _collapsed(self, key: str) -> bool:
        recent = self._recent.get(key, [])
        return len(recent) == WINDOW and max(recent) < COLLAPSED_STD
