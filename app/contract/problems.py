"""Errors as ``application/problem+json`` (RFC 9457) with a stable ``code``.

``Problem``                 an error for the caller: status, code, detail with a remedy
    ``problem(code, detail)`` the usual constructor; docs/api.md documents `CODES`

Also holds the handlers for FastAPI's own errors. Nothing here echoes the input: questions are private, and NaN has no
JSON form.
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
_FULL = ("disk is full", "No space left on device")  # the wording of SQLite and PostgreSQL

# code -> (status, title). Codes are part of the contract: add, never rename.
CODES: dict[str, tuple[int, str]] = {
    "malformed": (400, "The request cannot be read"),
    "bad_position": (400, "The stream position is not a non-negative integer"),
    "key_required": (401, "An API key is required"),
    "wrong_key": (401, "The API key is wrong"),
    "forbidden_origin": (403, "Cross-origin request rejected"),
    "not_found": (404, "Not found"),
    "trace_not_found": (404, "Trace not found"),
    "image_not_found": (404, "Image not found"),
    "job_not_found": (404, "Job not found"),
    "checkpoint_not_found": (404, "Checkpoint not found"),
    "method_not_allowed": (405, "Method not allowed"),
    "request_timeout": (408, "The request did not arrive in time"),
    "group_not_found": (404, "Group not found"),
    "trace_live": (409, "The trace is still running"),
    "no_answer": (409, "The trace has no answer"),
    "no_tokens": (409, "The trace has no stored tokens"),
    "not_paused": (409, "The trace is not paused"),
    "trace_elsewhere": (409, "The trace belongs to another server"),
    "weights_gone": (409, "The trace's weights are no longer available"),
    "not_resumable": (409, "The job cannot be resumed"),
    "job_live": (409, "The job is still running"),
    "job_elsewhere": (409, "The job belongs to another server"),
    "checkpoint_exists": (409, "The name is taken"),
    "checkpoint_in_use": (409, "The checkpoint is in use"),
    "checkpoint_protected": (409, "The checkpoint belongs to the installation"),
    "activation_in_progress": (409, "Another checkpoint is being activated"),
    "request_in_progress": (409, "The first request with this key is still being processed"),
    "body_too_large": (413, "The body is too large"),
    "not_json": (415, "The body must be JSON"),
    "unsupported_dataset": (415, "Unsupported dataset format"),
    "unsupported_image": (415, "Unsupported image format"),
    "wrong_host": (421, "Unknown host name"),
    "invalid": (422, "A field is invalid"),
    "unknown_checkpoint": (422, "Unknown checkpoint"),
    "checkpoint_invalid": (422, "The checkpoint cannot be used"),
    "path_not_allowed": (422, "The path is outside the allowed folders"),
    "unknown_image": (422, "Unknown image"),
    "image_broken": (422, "The image cannot be read"),
    "image_too_large": (422, "The image has too many pixels"),
    "image_too_narrow": (422, "The image's aspect ratio is too extreme"),
    "image_required": (422, "The question requires an image"),
    "too_many_images": (422, "Too many images"),
    "unsupported_url": (422, "Only data: URLs are supported"),
    "no_such_step": (422, "The trace has no such step"),
    "no_such_token": (422, "The step has no such token"),
    "bad_edit": (422, "The edit is not possible"),
    "incompatible_checkpoint": (422, "The checkpoint cannot draw these images"),
    "bad_place": (422, "The question refers to a missing image"),
    "prompt_too_long": (422, "The question does not fit"),
    "task_mismatch": (422, "The request does not match the task"),
    "idempotency_mismatch": (422, "The idempotency key was used for another request"),
    "queue_full": (429, "Too many traces are waiting"),
    "too_many_tries": (429, "Too many failed login attempts"),
    "internal": (500, "Internal server error"),
    "not_ready": (503, "The server is not ready yet"),
    "grader_busy": (503, "Too many answers are being graded"),
    "stopping": (503, "The server is stopping"),
    "database_unavailable": (503, "The database is unavailable"),
    "storage_unavailable": (503, "Storage is unavailable"),
    "too_many_connections": (503, "Too many connections are open"),
    "hub_unavailable": (504, "The hub is unavailable"),
    "disk_full": (507, "The disk is full"),
    "insufficient_memory": (507, "Not enough memory"),
}


class Problem(Exception):
    """An error response: `status`, stable `code`, human-readable `detail`, `errors` by field, extra `members`."""

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
        """The problem document; `instance` is the requested path."""
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
    """A problem caused by one field; `path` like ``body.images.0.image_id``."""
    return Problem(code, f"{path}: {detail}", errors=[{"path": path, "message": detail}])


def response_for(problem: Problem, instance: str) -> Response:
    """The HTTP response for `problem`."""
    content = json.dumps(problem.body(instance), allow_nan=False).encode()
    return Response(content, problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def from_validation(error: RequestValidationError) -> Problem:
    """422 with field paths, or 400 when the body is not JSON; never echoes the input."""
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


_ABSENT = object()


def _path(loc: Sequence[Any], body: object) -> list[str]:
    """The field's path in the input, without pydantic's names of union members."""
    path: list[str] = []
    at: Any = {"body": body}
    for part in loc:
        if isinstance(at, dict) and part not in at and part in (at.get("method"), at.get("source")):
            continue
        no_key = at is None or isinstance(at, str | int | float) or (isinstance(at, list) and isinstance(part, str))
        if no_key:  # what follows names a member of an untagged union
            break
        path.append(str(part))
        try:
            at = at[part]
        except (LookupError, TypeError):
            at = _ABSENT
    return path


def _tag(entry: Mapping[str, Any]) -> list[str]:
    """The discriminator field, when it is missing or unknown."""
    wrong = entry["type"] in ("union_tag_invalid", "union_tag_not_found")
    return [str(entry["ctx"]["discriminator"]).strip("'")] if wrong else []


def from_storage(error: BaseException) -> Problem | None:
    """The problem for a database or disk failure; None for any other error."""
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
                "the database is locked or unavailable; see the server's log, then try again",
                headers={"Retry-After": "2"},
            )
        if isinstance(cause, TooSlow) and cause.waits_for == "disk":
            detail = "the server's disk did not respond in time; try again"
            return Problem("storage_unavailable", detail, headers={"Retry-After": "10"})
        cause = cause.__cause__ or cause.__context__
    return None


class DatabaseGone(RuntimeError):
    """The database file was removed or replaced while the server ran."""


def install_handlers(app: FastAPI) -> None:
    """Install the handlers that turn every error into problem+json."""

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
        return response_for(
            Problem("malformed", "the connection closed before the body was complete"), request.url.path
        )

    async def on_any(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return response_for(
            Problem(
                "internal",
                "see the server's log; the request can be retried",
                headers={"X-Request-ID": request_id.get() or ""},  # answered outside `app/http/access_log.py`
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
