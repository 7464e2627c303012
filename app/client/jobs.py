"""Calls for training jobs, a mixin of `app.client.Client`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import quote

import httpx

from app.client.follow import GIVE_UP_S, follow
from app.client.sse import Event, JobCursor
from app.client.types import Job, JobPage
from app.client.types_data import DataRejection, Dataset
from app.client.types_runs import MetricsPage
from app.contract.words import DataMethod

KINDS = {b"PAR1": "application/vnd.apache.parquet", b"PK\3\4": "application/zip"}  # by the first bytes


class _Connection(Protocol):
    """The client methods that the calls use."""

    _http: httpx.Client
    _sleep: Callable[[float], None]
    _clock: Callable[[], float]

    def _json(self, method: str, url: str, **options: Any) -> dict[str, Any]: ...

    def _request(self, method: str, url: str, **options: Any) -> httpx.Response: ...


class JobCalls:
    """Job calls; mixed into the client."""

    def create_job(self: _Connection, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Queues a job; `spec` as in `training.spec.spec`. Raises BadInput with the path of every invalid field."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return cast(Job, self._json("POST", "/v1/jobs", json=dict(spec), headers=headers))

    def upload_dataset(self: _Connection, file: bytes | str | Path, *, method: DataMethod | None = None) -> Dataset:
        """Uploads a jsonl, parquet or zip file; returns its check. Use its `path` as `data.path`.

        Raises BadInput with the reasons if no row can be read or, with `method`, if the method can use none.
        """
        params = {} if method is None else {"method": method}
        with ExitStack() as opened:
            content = file if isinstance(file, bytes) else opened.enter_context(Path(file).open("rb"))
            head = content[:4] if isinstance(content, bytes) else content.peek(4)[:4]
            headers = {"Content-Type": KINDS.get(head, "application/x-ndjson")}
            return cast(Dataset, self._json("POST", "/v1/datasets", content=content, headers=headers, params=params))

    def dataset(self: _Connection, dataset_id: str, *, method: DataMethod | None = None) -> Dataset:
        """The check of an uploaded data set. Raises NotFound."""
        params = {} if method is None else {"method": method}
        return cast(Dataset, self._json("GET", _dataset(dataset_id), params=params))

    def dataset_rejections(self: _Connection, dataset_id: str) -> Iterator[DataRejection]:
        """Yields every rejection of an uploaded data set, in order. Raises NotFound."""
        for line in self._request("GET", f"{_dataset(dataset_id)}/rejections").iter_lines():
            yield cast(DataRejection, json.loads(line))

    def job(self: _Connection, job_id: str) -> Job:
        """A job with its progress, result and checkpoints. Raises NotFound."""
        return cast(Job, self._json("GET", _path(job_id)))

    def jobs(
        self: _Connection,
        *,
        limit: int = 20,
        after: str | None = None,
        status: str | None = None,
        method: str | None = None,
        name: str | None = None,
        tag: str | None = None,
    ) -> JobPage:
        """One page of jobs, newest first; `after` is the last id of the previous page."""
        wanted = {"limit": limit, "after": after, "status": status, "method": method, "name": name, "tag": tag}
        params = {name: value for name, value in wanted.items() if value not in (None, "")}
        return cast(JobPage, self._json("GET", "/v1/jobs", params=params))

    def job_metrics(self: _Connection, job_id: str, *, after: int = 0, limit: int = 100) -> MetricsPage:
        """One page of metrics, oldest first; `after` is the last `seq` of the previous page."""
        params = {"after": after, "limit": limit}
        return cast(MetricsPage, self._json("GET", _path(job_id, "metrics"), params=params))

    def job_events(self: _Connection, job_id: str, after: int = 0, *, give_up_s: float = GIVE_UP_S) -> Iterator[Event]:
        """Yields the job's events with numbers above `after`, live, each once and in order, until it has ended.

        Reconnects as for traces.
        """
        url, cursor = _path(job_id, "events"), JobCursor(after)
        return follow(self._http, url, cursor, give_up_s=give_up_s, sleep=self._sleep, clock=self._clock)

    def cancel_job(self: _Connection, job_id: str) -> Job:
        """Stops a job at its next step boundary; no-op for ended jobs."""
        return cast(Job, self._json("POST", _path(job_id, "cancel")))

    def resume_job(self: _Connection, job_id: str) -> Job:
        """Queues an ended job again. Raises Conflict if it cannot be resumed."""
        return cast(Job, self._json("POST", _path(job_id, "resume")))

    def delete_job(self: _Connection, job_id: str) -> None:
        """Deletes an ended job; its checkpoints stay. Raises Conflict while it is queued or running."""
        self._request("DELETE", _path(job_id))


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(["jobs", *(quote(part, safe="") for part in parts)])


def _dataset(dataset_id: str) -> str:
    return f"/v1/datasets/{quote(dataset_id, safe='')}"
