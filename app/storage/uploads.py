"""Uploaded files: a form's field `file` or the raw body, spooled to disk on arrival.

Each body takes at most `BUFFER_BYTES` of memory, however many arrive at once and however slowly. The file is deleted at
the end of its request, also when the client disconnects. Knows nothing about file contents.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from app.contract.problems import Problem, field_problem

BUFFER_BYTES = 262_144
MAX_PARTS = 20
MAX_BOUNDARY_BYTES = 256
_WRITERS = 4


def upload_body(*raw: str) -> dict[str, Any]:
    """`openapi_extra=` of a route that accepts a form with a file, or a body of one of the types `raw`."""
    binary = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["file"], "properties": {"file": binary}}
    return {
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": form}} | {one: {"schema": binary} for one in raw},
        }
    }


@dataclass(frozen=True)
class Upload:
    """A received file: its path during the request, size in bytes and SHA-256."""

    path: Path
    size: int
    digest: bytes


class Spool:
    """Holds the files of running uploads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers = ThreadPoolExecutor(_WRITERS, "upload")

    def close(self) -> None:
        """Stop writing."""
        self._writers.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def file(self) -> Iterator[Path]:
        """A new empty file, deleted at the end."""
        self.folder.mkdir(exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.folder, prefix="upload-")
        os.close(descriptor)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def writing(self, file: BinaryIO) -> Writing:
        """Write incoming data to `file`, in threads."""
        return Writing(file, self._writers)

    @asynccontextmanager
    async def receive(self, request: Request, raw: Sequence[str], code: str, detail: str) -> AsyncIterator[Upload]:
        """Receive the file of a request.

        Args:
            request: its body must be unread.
            raw: accepted content types (`image/*`) besides forms.
            code: problem code of the 415 for other types.
            detail: its detail.
        """
        kind, _, options = request.headers.get("content-type", "").partition(";")
        kind = kind.strip().lower()
        is_raw = any(fnmatchcase(kind, one) for one in raw)
        if not is_raw and kind != "multipart/form-data":
            raise Problem(code, detail)
        with self.file() as path, path.open("wb") as file:
            writing = self.writing(file)
            form = None if is_raw else _Form(_boundary(f"{kind};{options}"), writing)
            try:
                async for chunk in request.stream():
                    if form is None:
                        writing.add(chunk)
                    else:
                        form.feed(chunk)
                    await writing.flush(BUFFER_BYTES)
            except ClientDisconnect:
                raise Problem("malformed", "the body is incomplete") from None
            if form is not None:
                form.close()
            await writing.flush(1)
            yield Upload(path, writing.size, writing.hash.digest())


class Writing:
    """Collects bytes and writes them in threads."""

    def __init__(self, file: BinaryIO, threads: ThreadPoolExecutor) -> None:
        self._file, self._threads = file, threads
        self._held = bytearray()
        self.size = 0
        self.hash = hashlib.sha256()

    def add(self, data: bytes | bytearray) -> None:
        """Hold bytes in memory until the next `flush`."""
        self._held += data
        self.size += len(data)

    async def flush(self, at_least: int) -> None:
        """Write the held bytes in a thread, once there are `at_least` many."""
        if len(self._held) >= at_least:
            held, self._held = self._held, bytearray()
            await asyncio.get_running_loop().run_in_executor(self._threads, self._write, held)

    def _write(self, data: bytearray) -> None:
        self.hash.update(data)
        self._file.write(data)
        self._file.flush()


def _boundary(content_type: str) -> bytes:
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
        raise Problem("malformed", f"the form needs a boundary of 1 to {MAX_BOUNDARY_BYTES} bytes")
    return boundary


class _Form:
    """Parses a multipart form on arrival: the first file named `file` goes to `into`, the rest is dropped."""

    def __init__(self, boundary: bytes, into: Writing) -> None:
        self._into = into
        self._parts = 0
        self._name, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._taking = self._found = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Parse more of the body; 400 for a malformed form."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise Problem("malformed", f"the form cannot be read: {error}") from None

    def close(self) -> None:
        """End of the body: 422 without a file, 400 for a truncated one."""
        if self._taking:
            raise Problem("malformed", "the form ends within its file")
        if not self._found:
            raise field_problem("invalid", "body.file", "the form needs a file field called `file`")

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Problem("malformed", f"the form has more than {MAX_PARTS} parts")
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        options = parse_options_header(self._disposition)[1]
        is_file = options.get(b"name") == b"file" and b"filename" in options
        self._taking = is_file and not self._found
        self._found |= self._taking

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._taking:
            self._into.add(data[start:end])

    def _end(self) -> None:
        self._taking = False
