"""Errors as ``application/problem+json`` (RFC 9457) with a stable ``code``.

docs/api.md documents `CODES`. Nothing here echoes the input: questions are private, and NaN has no JSON form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field

MEDIA_TYPE = "application/problem+json"
# Errors below these have the shape that OpenAI's clients expect, also on the routes that this server does not have.
OPENAI_PATHS = ("/v1/responses", "/v1/models", "/v1/chat", "/v1/completions", "/v1/embeddings")

# code -> (status, title). Codes are part of the contract: add, never rename.
CODES: dict[str, tuple[int, str]] = {
    "unsupported_parameter": (400, "The parameter is not supported"),
    "malformed": (400, "The request cannot be read"),
    "bad_position": (400, "The stream position is not a non-negative integer"),
    "key_required": (401, "An API key is required"),
    "wrong_key": (401, "The API key is wrong"),
    "forbidden_origin": (403, "Cross-origin request rejected"),
    "role_missing": (403, "The key does not allow this"),
    "not_found": (404, "Not found"),
    "trace_not_found": (404, "Trace not found"),
    "image_not_found": (404, "Image not found"),
    "job_not_found": (404, "Job not found"),
    "sweep_not_found": (404, "Sweep not found"),
    "dataset_not_found": (404, "Data set not found"),
    "checkpoint_not_found": (404, "Checkpoint not found"),
    "model_not_found": (404, "Model not found"),
    "response_not_found": (404, "Response not found"),
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
    "not_continuable": (409, "The job cannot go on"),
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
    "unusable_dataset": (422, "No row of the data can be used"),
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
    "reward_failed": (422, "The reward cannot score this answer"),
    "bad_edit": (422, "The edit is not possible"),
    "incompatible_checkpoint": (422, "The checkpoint cannot draw these images"),
    "bad_place": (422, "The question refers to a missing image"),
    "no_verifier": (422, "No checkpoint can judge the drawings"),
    "off_policy": (422, "Reinforcement learning draws from the policy itself"),
    "prompt_too_long": (422, "The question does not fit"),
    "task_mismatch": (422, "The request does not match the task"),
    "idempotency_mismatch": (422, "The idempotency key was used for another request"),
    "queue_full": (429, "Too many traces are waiting"),
    "quota_exceeded": (429, "The key's limit is reached"),
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


def response_for(problem: Problem, instance: str, prefix: str = "") -> Response:
    """The HTTP response for `problem` on the path `instance`, which begins with a proxy's `prefix`."""
    if speaks_openai(instance.removeprefix(prefix)):
        return _openai_response(problem)
    content = json.dumps(problem.body(instance), allow_nan=False).encode()
    return Response(content, problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


# ---- the errors of OpenAI's API


class OpenAIError(BaseModel):
    """What went wrong."""

    message: str
    type: str = Field(description="a family of errors, such as `invalid_request_error`")
    param: str | None = Field(description="the parameter, such as `input[0].content[1].image_url`")
    code: str = Field(description="the code of a problem document")


class OpenAIErrorOut(BaseModel):
    """An error of `/v1/responses` and `/v1/models`."""

    error: OpenAIError


def speaks_openai(path: str) -> bool:
    """Whether errors on this path have OpenAI's shape."""
    return path.startswith(tuple(f"{prefix}/" for prefix in OPENAI_PATHS)) or path in OPENAI_PATHS


def _openai_response(problem: Problem) -> Response:
    """422 becomes 400, OpenAI's status for a bad value."""
    status = 400 if problem.status == HTTPStatus.UNPROCESSABLE_ENTITY else problem.status
    first = problem.errors[0] if problem.errors else None
    param = _param(first["path"]) if first is not None else None
    message = problem.detail if first is None else f"{param}: {first['message']}" if param else first["message"]
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = OpenAIError(message=message, type=kind, param=param, code=problem.code)
    content = OpenAIErrorOut(error=error).model_dump_json()
    return Response(content, status, headers=problem.headers, media_type="application/json")


def _param(path: str) -> str | None:
    """`input[0].role` for `body.input.0.role`; None for the body as a whole."""
    _place, *names = path.split(".")
    return "".join(f"[{name}]" if name.isdecimal() else f".{name}" for name in names).removeprefix(".") or None


def from_validation(error: RequestValidationError) -> Problem:
    """422 with field paths, or 400 when the body is not JSON; never echoes the input."""
    found = error.errors()
    if any(entry["type"] == "json_invalid" for entry in found):
        return Problem("malformed", "the body is not valid JSON")
    messages: dict[str, list[str]] = {}
    for entry in found:
        message = str(entry["msg"]).removeprefix("Value error, ").encode("ascii", "replace").decode()
        messages.setdefault(".".join([*_path(entry["loc"], error.body), *_tag(entry)]), []).append(message)
    errors = [{"path": path, "message": _either(said)} for path, said in messages.items()]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    code = found[0]["type"] if found[0]["type"] in CODES else "invalid"
    return Problem(code, f"{errors[0]['path']}: {errors[0]['message']}{more}", errors=errors[:20])


def _either(messages: Sequence[str]) -> str:
    """The messages of a union's members as one: each says what the input should be."""
    first, *others = dict.fromkeys(messages)
    return " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])


_ABSENT = object()


def _path(loc: Sequence[Any], body: object) -> list[str]:
    """The field's path in the input, without pydantic's names of union members and the tag `list`."""
    path: list[str] = []
    at: Any = {"body": body}
    for part in loc:
        if isinstance(at, dict) and part not in at and part in (at.get("method"), at.get("source"), at.get("type")):
            continue
        if isinstance(at, list) and part == "list":
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
