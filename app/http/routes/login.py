"""`/login`: exchanges the key for a signed cookie, so that pages, images and event streams need no header."""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.common.prefix import prefix_of
from app.contract.problems import Problem, field_problem
from app.http.auth import COOKIE_S, too_many_tries
from app.http.deps import App, problems
from app.http.keys import Keys
from app.http.login import local_path, login_page

log = logging.getLogger("omni_r1.login")
router = APIRouter(tags=["system"])

MAX_BODY = 16_384
FORM = "application/x-www-form-urlencoded"
_KEY = {"type": "object", "required": ["key"], "properties": {"key": {"type": "string"}}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _KEY, "example": {"key": "the server's OMNI_R1_API_KEY"}},
            FORM: {"schema": {**_KEY, "properties": {**_KEY["properties"], "next": {"type": "string"}}}},  # type: ignore[dict-item]
        },
    }
}
_SET_COOKIE = {"Set-Cookie": {"schema": {"type": "string"}}}
_ANSWERS = problems(
    400,
    401,
    403,
    413,
    415,
    422,
    429,
    also={
        204: {"description": "For a JSON body: the cookie", "headers": _SET_COOKIE},
        303: {"description": "For a form: the cookie and a redirect to `next`", "headers": _SET_COOKIE},
    },
)
for _status in (401, 429):  # for a form: the login page again
    _ANSWERS[_status]["content"]["text/html"] = {"schema": {"type": "string"}}


@router.get(
    "/login",
    response_class=Response,
    responses={
        200: {"description": "The page that asks for the key", "content": {"text/html": {}}},
        303: {"description": "Already signed in, or the server has no key"},
    },
)
async def show_login(request: Request, app: App, next: Annotated[str, Query(max_length=4000)] = "/") -> Response:
    """The login page, for browsers."""
    if app.key is None or await app.key.caller_of(request.headers) is not None:
        return RedirectResponse(local_path(next), 303)
    return login_page(next, prefix=prefix_of(request.scope))


@router.post(
    "/login",
    response_class=Response,
    status_code=204,
    openapi_extra=_BODY,
    responses=_ANSWERS,
)
async def login(request: Request, app: App) -> Response:
    """Sets the cookie for a valid key; forms are redirected to `next`, JSON (`{"key": …}`) gets an empty response."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise Problem("body_too_large", f"logins are limited to {MAX_BODY} bytes")
    cookie, prefix = None, prefix_of(request.scope)
    wait_s = app.key.main.brake.wait_s(_address(request)) if app.key else 0
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM:
        fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
        if "key" not in fields:
            raise field_problem("invalid", "body.key", "the form has no field `key`")
        given, next_ = fields.get("key", [""])[0], fields.get("next", ["/"])[0]
        if wait_s:
            return login_page(next_, prefix=prefix, problem=too_many_tries(wait_s))
        if app.key is not None and (cookie := await _cookie(app.key, given.strip(), request)) is None:
            return login_page(next_, prefix=prefix, problem=Problem("wrong_key", "That is not the key."))
        answer: Response = RedirectResponse(local_path(next_), 303, {"Cache-Control": "no-store"})
    elif kind == "application/json":
        if wait_s:
            raise too_many_tries(wait_s)
        key = _key_in(bytes(body))
        if app.key is not None and (cookie := await _cookie(app.key, key, request)) is None:
            raise Problem("wrong_key", "the key is wrong")
        answer = Response(None, 204, {"Cache-Control": "no-store"})
    else:
        raise Problem("not_json", f"send the key as application/json or {FORM}")
    if app.key is not None and cookie is not None:
        answer.set_cookie(
            app.key.main.cookie_name,
            cookie,
            max_age=COOKIE_S,
            path=prefix or "/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
    return answer


async def _cookie(keys: Keys, given: str, request: Request) -> str | None:
    cookie = await keys.log_in(given.encode("utf-8", "surrogatepass"))
    if cookie is None:
        keys.main.brake.note_wrong(_address(request))
        log.warning("wrong key at /login from %s", _address(request))
    return cookie


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def _key_in(body: bytes) -> str:
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem("malformed", "the body is not valid JSON") from None
    if not isinstance(content, dict) or set(content) != {"key"} or not isinstance(content["key"], str):
        raise field_problem("invalid", "body.key", 'send {"key": "…"} and nothing else')
    return content["key"]
