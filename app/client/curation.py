"""Calls that rate, tag and export traces, a mixin of `app.client.Client`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, cast
from urllib.parse import quote

import httpx

from app.client.errors import api_error
from app.client.follow import unreachable
from app.client.types import Trace, TraceFilter
from app.contract.words import ExportFormat

_NAME: Final = 'filename="'


class Unchanged:
    """The type of `UNCHANGED`."""


UNCHANGED: Final = Unchanged()


class _Connection(Protocol):
    """The client methods that the calls use."""

    _http: httpx.Client

    def _json(self, method: str, url: str, **options: Any) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Exported:
    """A file that arrives: the server's name for it, its bytes, and how many traces it leaves out."""

    name: str
    skipped: int
    chunks: Iterator[bytes]


class CurationCalls:
    """Curation and export calls; mixed into the client."""

    def update_trace(
        self: _Connection,
        trace_id: str,
        *,
        rating: Literal[-1, 0, 1] | Unchanged | None = UNCHANGED,
        tags: Sequence[str] | Unchanged = UNCHANGED,
        note: str | Unchanged | None = UNCHANGED,
    ) -> Trace:
        """Sets what is given of rating (None removes it), tags (all of them) and note. Raises NotFound, BadInput."""
        given = {"rating": rating, "tags": tags, "note": note}
        body = {name: value for name, value in given.items() if not isinstance(value, Unchanged)}
        return cast(Trace, self._json("PATCH", f"/v1/traces/{quote(trace_id, safe='')}", json=body))

    @contextmanager
    def export(
        self: _Connection,
        trace_ids: str | Sequence[str] | None = None,
        *,
        format: ExportFormat,
        filter: TraceFilter | None = None,
    ) -> Iterator[Exported]:
        """One trace, several, or all that match a filter as a file, while the block runs.

        Only one chunk is in memory at a time. Raises NotFound, Conflict for a running trace, BadInput, and
        ServerUnreachable if the file breaks off.
        """
        if isinstance(trace_ids, str):
            url, params = f"/v1/traces/{quote(trace_ids, safe='')}/export", {"format": format}
            request = self._http.build_request("GET", url, params=params)
        else:
            selection = {"filter": filter or {}} if trace_ids is None else {"trace_ids": list(trace_ids)}
            request = self._http.build_request("POST", "/v1/exports", json={"format": format, **selection})
        try:
            response = self._http.send(request, stream=True)
        except httpx.TransportError as error:
            raise unreachable(self._http, error) from error
        try:
            if response.is_error:
                response.read()
                raise api_error(response)
            name = response.headers.get("content-disposition", "").partition(_NAME)[2].strip('"')
            skipped = int(response.headers.get("x-skipped", "0"))
            yield Exported(name or f"traces.{format}", skipped, _chunks(self._http, response))
        finally:
            response.close()


def _chunks(http: httpx.Client, response: httpx.Response) -> Iterator[bytes]:
    try:
        yield from response.iter_bytes()
    except httpx.TransportError as error:
        raise unreachable(http, error) from error
