"""Exceptions of `app.client`, and their mapping from server responses.

OmniError
├── ServerUnreachable
├── MalformedAnswer
└── ApiError
    ├── BadInput
    ├── NotAllowed
    ├── NotFound
    ├── Conflict
    ├── QueueFull
    └── ServerFailed
        └── NotReady
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx


class OmniError(Exception):
    """Base of all client errors; the message is one line."""


class ServerUnreachable(OmniError):
    """No response, or the connection broke and could not be restored."""


class MalformedAnswer(OmniError):
    """The response is not from this API."""


class ApiError(OmniError):
    """An error response: `status`, the stable `code`, `detail`, and the whole problem document."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.status = status
        self.problem = dict(problem)
        self.code = str(problem.get("code", f"http_{status}"))
        self.title = str(problem.get("title", ""))
        self.detail = str(problem.get("detail") or self.title or f"the server answered {status}")
        self.retry_after = retry_after
        super().__init__(self.detail)


class BadInput(ApiError):
    """400, 413, 415, 421, 422: the request must change."""


class NotAllowed(ApiError):
    """401, 403: the key is missing or wrong, or the request came from another site."""


class NotFound(ApiError):
    """404: nothing has this id."""


class Conflict(ApiError):
    """409: impossible in the present state."""


class QueueFull(ApiError):
    """429: try again after `retry_after` seconds."""


class ServerFailed(ApiError):
    """5xx: the fault is not in the request."""


class NotReady(ServerFailed):
    """503: the server starts, stops or cannot reach its database."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadInput,
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    413: BadInput,
    415: BadInput,
    421: BadInput,
    422: BadInput,
    429: QueueFull,
    503: NotReady,
}


def api_error(response: httpx.Response) -> ApiError:
    """The exception for a response of status 400 and above whose body has been read."""
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    after = response.headers.get("retry-after", "")
    fallback = ServerFailed if response.status_code >= 500 else ApiError
    kind = _BY_STATUS.get(response.status_code, fallback)
    return kind(response.status_code, problem, float(after) if after.isdigit() else None)
