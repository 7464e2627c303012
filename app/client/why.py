"""The calls on how much a trace depends on its images: reliance, attention, interventions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast
from urllib.parse import quote

from app.client.types import Group
from app.client.types_why import ImageAttention, Reliance
from app.contract.words import Replacement


class _Connection(Protocol):
    def _json(self, method: str, url: str, **options: Any) -> dict[str, Any]: ...


class WhyCalls:
    """Part of :class:`app.client.Client`."""

    def reliance(self: _Connection, trace_id: str) -> Reliance:
        """What hiding each image from later tokens costs the answer. Raises Conflict without answer or tokens."""
        return cast(Reliance, self._json("POST", _path(trace_id, "reliance")))

    def attention(self: _Connection, trace_id: str, step: int | None = None) -> list[ImageAttention]:
        """How much the answer, or a step, attends to each image; that is not a cause."""
        body = {"from": "answer" if step is None else {"step": step}}
        return cast(list[ImageAttention], self._json("POST", _path(trace_id, "attention"), json=body)["images"])

    def intervene(
        self: _Connection,
        trace_id: str,
        with_: Sequence[Replacement] = ("previous",),
        *,
        steps: Sequence[int] | Literal["all"] = "all",
        idempotency_key: str | None = None,
    ) -> Group:
        """Starts one greedy branch for each step and replacement of its image.

        Follow them with `group_events`; the last event, and then `group`, has their `effects`.
        """
        body = {"with": list(with_), "steps": steps if steps == "all" else list(steps)}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return cast(Group, self._json("POST", _path(trace_id, "interventions"), json=body, headers=headers))


def _path(trace_id: str, call: str) -> str:
    return f"/v1/traces/{quote(trace_id, safe='')}/{call}"
