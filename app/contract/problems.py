"""What can go wrong and how it is told: ``application/problem+json`` (RFC 9457) with a stable ``code``.

``Problem``                 anything a caller is told: status, code, detail, what to do about it
  ``problem(code, detail)`` the usual way to make one; `CODES` is the list that docs/api.md repeats

Handlers for FastAPI's own errors live here too. Nothing here echoes what was sent: questions are private and a NaN
cannot be written as JSON.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.common.pools import TooSlow
from model.log_lines import request_id

log = logging.getLogger("omni_r1.errors")

MEDIA_TYPE = "application/problem+json"
_FULL = ("disk is full", "No space left on device")  # SQLite's words, and what PostgreSQL passes on

# code -> (status, title). The codes are part of the contract: add, never rename.
CODES: dict[str, tuple[int, str]] = {
    "malformed": (400, "The request cannot be read"),
    "bad_position": (400, "The stream position is not an integer from 0 up"),
    "key_required": (401, "The server wants its key"),
    "wrong_key": (401, "Not the server's key"),
    "forbidden_origin": (403, "Another site may not do this"),
    "not_found": (404, "There is nothing here"),
    "trace_not_found": (404, "No such trace"),
    "image_not_found": (404, "No such picture"),
    "job_not_found": (404, "No such job"),
    "checkpoint_not_found": (404, "No such checkpoint"),
    "method_not_allowed": (405, "Not this method"),
    "request_timeout": (408, "The request did not arrive in time"),
    "not_paused": (409, "The trace is not paused"),
    "trace_elsewhere": (409, "Another server has the trace"),
    "weights_gone": (409, "The weights this trace began with are gone"),
    "not_resumable": (409, "The job cannot be resumed"),
    "job_live": (409, "The job has not ended"),
    "job_elsewhere": (409, "The job belongs to another server"),
    "checkpoint_exists": (409, "The name is taken"),
    "checkpoint_in_use": (409, "The checkpoint is in use"),
    "checkpoint_protected": (409, "The checkpoint belongs to the installation"),
    "activation_in_progress": (409, "Another checkpoint is being activated"),
    "request_in_progress": (409, "The first request with this key is still being accepted"),
    "body_too_large": (413, "The body is too large"),
    "not_json": (415, "The body must be JSON"),
    "unsupported_dataset": (415, "Not a kind of training file this server reads"),
    "unsupported_image": (415, "Not a picture this server reads"),
    "wrong_host": (421, "This server does not answer under that name"),
    "invalid": (422, "A field is not valid"),
    "unknown_checkpoint": (422, "No such checkpoint"),
    "checkpoint_invalid": (422, "The checkpoint cannot be used"),
    "path_not_allowed": (422, "The path lies outside the allowed folders"),
    "unknown_image": (422, "No such picture"),
    "image_broken": (422, "The picture cannot be read"),
    "image_too_large": (422, "The picture has too many pixels"),
    "image_too_narrow": (422, "The image is far longer than wide"),
    "image_required": (422, "The question needs a picture"),
    "too_many_images": (422, "Too many pictures"),
    "unsupported_url": (422, "Only data: URLs of pictures are read"),
    "bad_place": (422, "The question names an image that is not there"),
    "prompt_too_long": (422, "The question does not fit"),
    "task_mismatch": (422, "The trace does not ask that task's question"),
    "idempotency_mismatch": (422, "The key was used for another request"),
    "queue_full": (429, "Too many traces are waiting"),
    "too_many_tries": (429, "Too many wrong keys"),
    "internal": (500, "Something broke on the server"),
    "not_ready": (503, "The server is not ready yet"),
    "grader_busy": (503, "Too many answers are being graded"),
    "stopping": (503, "The server is stopping"),
    "database_unavailable": (503, "The database does not answer"),
    "storage_unavailable": (503, "The disk does not answer"),
    "too_many_connections": (503, "Too many connections are open"),
    "hub_unavailable": (504, "The hub does not answer"),
    "disk_full": (507, "The disk is full"),
    "insufficient_memory": (507, "Memory cannot hold it"),
}


class Problem(Exception):
    """One refusal: `status`, stable `code`, `detail` for a person, `errors` with field paths, more `members`."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.status, self.title = CODES[code]
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        self.members = dict(members or {})

    def body(self, instance: str) -> dict[str, Any]:
        """The problem document; `instance` is the path that was asked for."""
        document: dict[str, Any] = {
            "type": f"urn:omni-r1:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "code": self.code,
        }
        if self.errors:
            document["errors"] = self.errors
        return document | self.members


def field_problem(code: str, path: str, detail: str) -> Problem:
    """A refusal that one field is to blame for; `path` like ``body.images.0.image_id``."""
    return Problem(code, f"{path}: {detail}", errors=[{"path": path, "message": detail}])


def response_for(problem: Problem, instance: str) -> Response:
    """The HTTP answer for `problem`."""
    content = json.dumps(problem.body(instance), allow_nan=False).encode()
    return Response(content, problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def from_validation(error: RequestValidationError) -> Problem:
    """422 with field paths, or 400 where the body is not JSON at all; never with the input in it."""
    found = error.errors()
    if any(entry["type"] == "json_invalid" for entry in found):
        return Problem("malformed", "the body is not valid JSON")
    errors = [
        {
            "path": ".".join([*_path(entry["loc"], error.body), *_tag(entry)]),
            "message": str(entry["msg"]).removeprefix("Value error, ").encode("ascii", "replace").decode(),
        }
        for entry in found
    ]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem("invalid", f"{errors[0]['path']}: {errors[0]['message']}{more}", errors=errors[:20])


def _path(loc: Sequence[Any], body: object) -> list[str]:
    """Where a field stands in what was sent: without the names that pydantic gives the members of a tagged union."""
    path: list[str] = []
    at: Any = {"body": body}
    for part in loc:
        if isinstance(at, dict) and part not in at and part in (at.get("method"), at.get("source")):
            continue
        path.append(str(part))
        try:
            at = at[part]
        except (LookupError, TypeError):
            at = None
    return path


def _tag(entry: Mapping[str, Any]) -> list[str]:
    """The field that chooses the member of a tagged union, where that is missing or names none."""
    wrong = entry["type"] in ("union_tag_invalid", "union_tag_not_found")
    return [str(entry["ctx"]["discriminator"]).strip("'")] if wrong else []


def from_storage(error: BaseException) -> Problem | None:
    """The refusal for a database or disk that does not do its work; None for any other error."""
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        if getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(said in text for said in _FULL):
            return Problem("disk_full", "no space left on the disk; free some and try again; nothing was lost")
        gone = isinstance(cause, TooSlow) and cause.waits_for == "database"
        lost = isinstance(cause, DBAPIError) and cause.connection_invalidated
        if lost or gone or isinstance(cause, OperationalError | DatabaseGone | PoolTimeout):
            return Problem(
                "database_unavailable",
                "the database is locked or gone; see the server's log, then try again",
                headers={"Retry-After": "2"},
            )
        if isinstance(cause, TooSlow) and cause.waits_for == "disk":
            detail = "the server's disk did not answer in time; try again"
            return Problem("storage_unavailable", detail, headers={"Retry-After": "10"})
        cause = cause.__cause__ or cause.__context__
    return None


class DatabaseGone(RuntimeError):
    """The database file was removed or replaced under the running server."""


def install_handlers(app: FastAPI) -> None:
    """Give `app` the handlers that turn every error into problem+json."""

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return response_for(error, request.url.path)

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return response_for(from_validation(error), request.url.path)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {400: "malformed", 404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        if code is None:
            code = "internal" if error.status_code >= 500 else "malformed"
        detail = error.detail if isinstance(error.detail, str) else HTTPStatus(error.status_code).phrase
        if error.status_code == 400 and isinstance(error.__cause__, RecursionError | ValueError):
            detail = "the body cannot be read as JSON: it is nested too deeply, or a number in it is too long"
        problem = Problem(code, detail, headers=dict(error.headers or {}))
        problem.status = error.status_code
        return response_for(problem, request.url.path)

    async def on_storage(request: Request, error: Exception) -> Response:
        problem = from_storage(error)
        if problem is None:
            return await on_any(request, error)
        log.error("%s %s: %s", request.method, request.url.path, str(error).splitlines()[0])
        return response_for(problem, request.url.path)

    async def on_gone(request: Request, _error: Exception) -> Response:
        return response_for(Problem("malformed", "the connection ended before the body did"), request.url.path)

    async def on_any(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return response_for(
            Problem(
                "internal",
                "the server's log has the reason; the request may be sent again",
                headers={"X-Request-ID": request_id.get() or ""},  # answered outside of `app/http/access_log.py`
            ),
            request.url.path,
        )

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ClientDisconnect, on_gone)
    app.add_exception_handler(DBAPIError, on_storage)
    app.add_exception_handler(PoolTimeout, on_storage)
    app.add_exception_handler(OSError, on_storage)
    app.add_exception_handler(TooSlow, on_storage)
    app.add_exception_handler(DatabaseGone, on_storage)
    app.add_exception_handler(Exception, on_any)
