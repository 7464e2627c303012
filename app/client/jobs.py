"""The calls about training jobs, as a part of `app.client.Client`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import quote

import httpx

from app.client.follow import GIVE_UP_S, follow
from app.client.sse import Event, JobCursor
from app.client.types import Dataset, Job, JobPage, MetricsPage


class _Connection(Protocol):
    """What the calls need of the client that they are a part of."""

    _http: httpx.Client
    _sleep: Callable[[float], None]
    _clock: Callable[[], float]

    def _json(self, method: str, url: str, **options: Any) -> dict[str, Any]: ...

    def _request(self, method: str, url: str, **options: Any) -> httpx.Response: ...


class JobCalls:
    """Jobs of a server; mixed into the client."""

    def create_job(self: _Connection, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Queues a job; `spec` as in `training.spec.spec`. Raises BadInput with the path of every bad field."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return cast(Job, self._json("POST", "/v1/jobs", json=dict(spec), headers=headers))

    def upload_dataset(self: _Connection, file: bytes | str | Path) -> Dataset:
        """Uploads a jsonl file; `path` of the answer is for `data.path`. Raises BadInput that names a broken line."""
        data = file if isinstance(file, bytes) else Path(file).read_bytes()
        headers = {"Content-Type": "application/x-ndjson"}
        return cast(Dataset, self._json("POST", "/v1/datasets", content=data, headers=headers))

    def job(self: _Connection, job_id: str) -> Job:
        return cast(Job, self._json("GET", _path(job_id)))

    def jobs(
        self: _Connection,
        *,
        limit: int = 20,
        after: str | None = None,
        status: str | None = None,
        method: str | None = None,
    ) -> JobPage:
        """One page of jobs, newest first; `after` is the id of the last one of the page before."""
        wanted = {"limit": limit, "after": after, "status": status, "method": method}
        params = {name: value for name, value in wanted.items() if value not in (None, "")}
        return cast(JobPage, self._json("GET", "/v1/jobs", params=params))

    def job_metrics(self: _Connection, job_id: str, *, after: int = 0, limit: int = 100) -> MetricsPage:
        """One page of metrics, oldest first; `after` is the `seq` of the last row of the page before."""
        params = {"after": after, "limit": limit}
        return cast(MetricsPage, self._json("GET", _path(job_id, "metrics"), params=params))

    def job_events(self: _Connection, job_id: str, after: int = 0, *, give_up_s: float = GIVE_UP_S) -> Iterator[Event]:
        """The job's events with numbers above `after`, live, each once and in order, until it has ended.

        Broken connections and restarts of the server are bridged as for traces.
        """
        url, cursor = _path(job_id, "events"), JobCursor(after)
        return follow(self._http, url, cursor, give_up_s=give_up_s, sleep=self._sleep, clock=self._clock)

    def cancel_job(self: _Connection, job_id: str) -> Job:
        """Asks it to stop at its next step boundary; one that has ended stays as it is."""
        return cast(Job, self._json("POST", _path(job_id, "cancel")))

    def resume_job(self: _Connection, job_id: str) -> Job:
        """Queues an ended job again. Raises Conflict where it cannot go on."""
        return cast(Job, self._json("POST", _path(job_id, "resume")))

    def delete_job(self: _Connection, job_id: str) -> None:
        """Removes an ended job; its checkpoints stay. Raises Conflict while it is queued or running."""
        self._request("DELETE", _path(job_id))


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(["jobs", *(quote(part, safe="") for part in parts)])
