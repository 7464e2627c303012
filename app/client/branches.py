"""Calls for branches, groups and tokens of traces, a mixin of `app.client.Client`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, cast
from urllib.parse import quote

import httpx

from app.client.follow import GIVE_UP_S, follow
from app.client.sse import Event, GroupCursor
from app.client.types import Alternative, Edit, Group, GroupPage, Sampling, ThenToken, Trace, TraceTokens, Tree, Verify
from app.contract.words import Mode


class _Connection(Protocol):
    """The client methods that the calls use."""

    _http: httpx.Client
    _sleep: Callable[[float], None]
    _clock: Callable[[], float]

    def _json(self, method: str, url: str, **options: Any) -> dict[str, Any]: ...

    def _request(self, method: str, url: str, **options: Any) -> httpx.Response: ...


class BranchCalls:
    """Branch and group calls; mixed into the client."""

    def branch(
        self: _Connection,
        trace_id: str,
        after_step: int,
        *,
        edits: Sequence[Edit] = (),
        then_text: str | None = None,
        then_token: ThenToken | None = None,
        then: Literal["answer"] | None = None,
        n: int = 1,
        checkpoint: str | None = None,
        mode: Mode | None = None,
        sampling: Sampling | None = None,
        verify: Verify | None = None,
        partial_images: int | None = None,
        background: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> list[Trace]:
        """Keeps steps 1 … `after_step` of a trace, edited if requested, and lets the model go on; returns `n` branches.

        Values that are not given are the trace's own. Raises NotFound, Conflict while the trace is running, BadInput,
        QueueFull.
        """
        wanted = {
            "edits": list(edits) or None,
            "then_text": then_text,
            "then_token": then_token,
            "then": then,
            "n": n if n != 1 else None,
            "checkpoint": checkpoint,
            "mode": mode,
            "sampling": sampling,
            "verify": verify,
            "partial_images": partial_images,
            "background": background,
            "metadata": metadata,
        }
        body = {"after_step": after_step} | {name: value for name, value in wanted.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        made = self._json("POST", _path("traces", trace_id, "branches"), json=body, headers=headers)
        return cast(list[Trace], made["data"])

    def tree(self: _Connection, trace_id: str) -> Tree:
        """A trace with its ancestors and branches, oldest first. Raises NotFound."""
        return cast(Tree, self._json("GET", _path("traces", trace_id, "tree")))

    def tokens(self: _Connection, trace_id: str) -> TraceTokens:
        """Every token of a trace with its log-probability. Raises Conflict if none are stored."""
        return cast(TraceTokens, self._json("GET", _path("traces", trace_id, "tokens")))

    def alternatives(self: _Connection, trace_id: str, step: int | Literal["answer"], token: int) -> list[Alternative]:
        """The likeliest tokens at a position of `tokens`, best first; begin a branch with one by `then_token`."""
        body = {"step": step, "token": token}
        return cast(list[Alternative], self._json("POST", _path("traces", trace_id, "alternatives"), json=body)["data"])

    def group(self: _Connection, group_id: str) -> Group:
        """A group with the tally of its answers so far. Raises NotFound."""
        return cast(Group, self._json("GET", _path("groups", group_id)))

    def groups(self: _Connection, *, limit: int = 20, after: str | None = None) -> GroupPage:
        """One page of groups, newest first; `after` is the last id of the previous page."""
        params = {"limit": limit} | ({"after": after} if after else {})
        return cast(GroupPage, self._json("GET", "/v1/groups", params=params))

    def group_events(
        self: _Connection, group_id: str, after: int = 0, *, give_up_s: float = GIVE_UP_S
    ) -> Iterator[Event]:
        """Yields the events of all members, each with its `trace_id`, until all have ended; reconnects as `events`."""
        url, cursor = _path("groups", group_id, "events"), GroupCursor(after)
        return follow(self._http, url, cursor, give_up_s=give_up_s, sleep=self._sleep, clock=self._clock)

    def cancel_group(self: _Connection, group_id: str) -> Group:
        """Cancels every member that has not ended; returns when the engine has stopped them."""
        return cast(Group, self._json("POST", _path("groups", group_id, "cancel")))

    def delete_group(self: _Connection, group_id: str) -> None:
        """Deletes a group and its members; active ones are cancelled first."""
        self._request("DELETE", _path("groups", group_id))


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)
