"""Calls about what the server's home holds, a mixin of `app.client.Client`."""

from __future__ import annotations

from typing import Any, Protocol, TypedDict, cast


class Pruned(TypedDict):
    """What was deleted, or would be; `over_bytes` is what deleting traces cannot change."""

    dry_run: bool
    traces: int
    images: int
    bytes: int
    over_bytes: int


class StoreError(TypedDict):
    """Why something was not uploaded or deleted at that time."""

    detail: str
    at: str


class Store(TypedDict):
    """The object store that gets the home's files: what waits for it, and what it got since the server started."""

    url: str
    waiting: int
    waiting_since: str | None
    uploaded: int
    deleted: int
    failed: int
    last_error: StoreError | None


class Storage(TypedDict):
    """Bytes by kind, the limits, and the object store, if there is one."""

    sizes: dict[str, int]
    total_bytes: int
    keep_days: int | None
    max_bytes: int | None
    last_prune: Pruned | None
    store: Store | None


class _Connection(Protocol):
    """The client method that the calls use."""

    def _json(self, method: str, url: str, **options: Any) -> dict[str, Any]: ...


class StorageCalls:
    """Calls about storage; mixed into the client."""

    def storage(self: _Connection) -> Storage:
        """What the server's home holds, by kind, and its limits."""
        return cast(Storage, self._json("GET", "/v1/storage"))

    def prune(
        self: _Connection, *, dry_run: bool = False, keep_days: int | None = None, max_gb: float | None = None
    ) -> Pruned:
        """Deletes old traces as the server's settings say, or these limits. Raises BadInput without any limit."""
        given = {"dry_run": dry_run or None, "keep_days": keep_days, "max_gb": max_gb}
        body = {name: value for name, value in given.items() if value is not None}
        return cast(Pruned, self._json("POST", "/v1/storage/prune", json=body, timeout=None))
