"""Calls over many jobs: labels, series, sweeps; a mixin of `app.client.Client`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast
from urllib.parse import quote

from app.client.curation import UNCHANGED, Unchanged
from app.client.types import Job
from app.client.types_runs import Estimate, Result, SeriesList, Sweep, SweepPage


class _Connection(Protocol):
    """The client methods that the calls use."""

    def _json(self, method: str, url: str, **options: Any) -> dict[str, Any]: ...


class RunCalls:
    """Calls for the workbench; mixed into the client."""

    def update_job(
        self: _Connection,
        job_id: str,
        *,
        name: str | Unchanged | None = UNCHANGED,
        tags: Sequence[str] | Unchanged = UNCHANGED,
        note: str | Unchanged | None = UNCHANGED,
    ) -> Job:
        """Sets what is given of name (None removes it), tags (all of them) and note. Raises NotFound, BadInput."""
        given = {"name": name, "tags": tags, "note": note}
        body = {key: value for key, value in given.items() if not isinstance(value, Unchanged)}
        return cast(Job, self._json("PATCH", f"/v1/jobs/{quote(job_id, safe='')}", json=body))

    def estimate_job(self: _Connection, spec: Mapping[str, Any]) -> Estimate:
        """How long a job will take on this server, by finished ones like it. Queues nothing. Raises BadInput."""
        return cast(Estimate, self._json("POST", "/v1/jobs/estimate", json=dict(spec)))

    def continue_job(
        self: _Connection,
        job_id: str,
        steps: int,
        *,
        name: str | None = None,
        output_name: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Queues a job that goes on from a finished one for `steps` more; see its `continues`. Raises Conflict."""
        given = {"steps": steps, "name": name, "output_name": output_name}
        body = {key: value for key, value in given.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        url = f"/v1/jobs/{quote(job_id, safe='')}/continue"
        return cast(Job, self._json("POST", url, json=body, headers=headers))

    def job_series(
        self: _Connection,
        job_ids: Sequence[str],
        keys: Sequence[str] = (),
        *,
        points: int = 500,
        first: int | None = None,
        last: int | None = None,
    ) -> SeriesList:
        """Metrics of several jobs, at most `points` values of each between the steps `first` and `last`.

        Without `keys` only the names of their metrics. Raises BadInput.
        """
        wanted = {"ids": ",".join(job_ids), "keys": ",".join(keys), "points": points, "from": first, "to": last}
        params = {name: value for name, value in wanted.items() if value is not None}
        return cast(SeriesList, self._json("GET", "/v1/jobs/metrics", params=params))

    def create_sweep(
        self: _Connection,
        spec: Mapping[str, Any],
        grid: Mapping[str, Sequence[Any]],
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> Sweep:
        """Queues a job for each combination of the values in `grid`, by path in the spec. Raises BadInput."""
        body = {"spec": spec, "grid": grid, "name": name}  # the server says what is wrong with them
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return cast(Sweep, self._json("POST", "/v1/sweeps", json=body, headers=headers))

    def sweep(self: _Connection, sweep_id: str) -> Sweep:
        """A sweep with its jobs. Raises NotFound."""
        return cast(Sweep, self._json("GET", f"/v1/sweeps/{quote(sweep_id, safe='')}"))

    def sweeps(self: _Connection, *, limit: int = 20, after: str | None = None) -> SweepPage:
        """One page of sweeps, newest first; `after` is the last id of the previous page."""
        params = {"limit": limit} | ({} if after is None else {"after": after})
        return cast(SweepPage, self._json("GET", "/v1/sweeps", params=params))

    def cancel_sweep(self: _Connection, sweep_id: str) -> Sweep:
        """Stops the jobs of a sweep that have not ended."""
        return cast(Sweep, self._json("POST", f"/v1/sweeps/{quote(sweep_id, safe='')}/cancel"))

    def resume_sweep(self: _Connection, sweep_id: str) -> Sweep:
        """Queues the jobs of a sweep again that ended without success and can be resumed."""
        return cast(Sweep, self._json("POST", f"/v1/sweeps/{quote(sweep_id, safe='')}/resume"))

    def leaderboard(self: _Connection, checkpoint: str | None = None) -> list[Result]:
        """Results of finished benchmarks, newest first, of one checkpoint or of all."""
        params = {} if checkpoint is None else {"checkpoint": checkpoint}
        return cast("list[Result]", self._json("GET", "/v1/leaderboard", params=params)["data"])
