"""A file in a request: a form's field `file`, or the body itself. Knows nothing of what the file holds."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from app.errors import Problem, field_problem


def upload_body(raw: str) -> dict[str, Any]:
    """`openapi_extra=` of a route that takes a form with a file, or a body of the kind `raw`."""
    binary = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["file"], "properties": {"file": binary}}
    return {
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": form}, raw: {"schema": binary}},
        }
    }


async def uploaded(request: Request, raw: Sequence[str], code: str, detail: str) -> bytes:
    """The file's bytes; `raw` are the kinds (`image/*`) that the body may have itself; 415 `code` for any other."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if any(fnmatchcase(kind, one) for one in raw):
        return await request.body()
    if kind != "multipart/form-data":
        raise Problem(code, detail)
    async with request.form(max_files=4, max_fields=16) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise field_problem("invalid", "body.file", "the form needs a file field called `file`")
        return await file.read()
