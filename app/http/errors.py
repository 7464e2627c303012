"""Handlers that turn every error of a route into a problem document."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from app.common.pools import TooSlow
from app.common.prefix import below, prefix_of
from app.contract.problems import Problem, from_validation, response_for
from app.storage.faults import DatabaseGone, from_storage
from model.log_lines import request_id

log = logging.getLogger("omni_r1.errors")


def refused(problem: Problem, scope: Scope) -> Response:
    """The response for `problem` to the request of an ASGI scope."""
    return response_for(problem, scope["path"], prefix_of(scope))


def install_handlers(app: FastAPI) -> None:
    """Install the handlers that turn every error into problem+json."""

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return refused(error, request.scope)

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return refused(from_validation(error), request.scope)

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
        return refused(problem, request.scope)

    async def on_storage(request: Request, error: Exception) -> Response:
        problem = from_storage(error)
        if problem is None:
            return await on_any(request, error)
        log.error("%s %s: %s", request.method, below(request.scope), str(error).splitlines()[0])
        return refused(problem, request.scope)

    async def on_gone(request: Request, _error: Exception) -> Response:
        return refused(Problem("malformed", "the connection closed before the body was complete"), request.scope)

    async def on_any(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, below(request.scope), exc_info=error)
        return refused(
            Problem(
                "internal",
                "see the server's log; the request can be retried",
                headers={"X-Request-ID": request_id.get() or ""},  # answered outside `app/http/access_log.py`
            ),
            request.scope,
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
