"""A small S3 in this process, whose faults a test switches on."""

from __future__ import annotations

import re
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "studio"
KEY = re.compile(rb"<Key>(.*?)</Key>")


class S3:
    """One bucket, as a client finds it by AWS_* variables."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []  # methods and keys
        self.refused: tuple[int, str] | None = None  # a status and an S3 error code for every request
        self.gate = threading.Event()  # every request waits for it
        self.gate.set()
        self.parts: dict[str, dict[int, bytes]] = {}
        self._server: _Listener | None = None
        self.port = 0
        self.up()

    @property
    def url(self) -> str:
        """The store of a test: a prefix of its own."""
        return f"s3://{BUCKET}/lab"

    @property
    def environment(self) -> dict[str, str]:
        """What a server needs to find it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "studio",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def names(self) -> set[str]:
        """The keys below the prefix."""
        return {key.removeprefix("lab/") for key in self.objects}

    def read(self, key: str) -> bytes:
        """An object below the prefix."""
        return self.objects[f"lab/{key}"]

    def down(self) -> None:
        """Refuse connections."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def up(self) -> None:
        """Listen, where it listened before."""
        self._server = _Listener(("127.0.0.1", self.port), _Handler)
        self._server.s3 = self
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @contextmanager
    def refusing(self, status: int, code: str) -> Iterator[None]:
        """Answer every request with an error."""
        self.refused = (status, code)
        try:
            yield
        finally:
            self.refused = None


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    s3: S3

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def server_close(self) -> None:
        super().server_close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # their threads have them open, too

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may leave at any time."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def _handle(self) -> None:
        s3, url = self.server.s3, urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        asked = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        s3.requests.append((self.command, key))
        s3.gate.wait()
        if s3.refused is not None:
            self._error(*s3.refused)
        elif bucket != BUCKET:
            self._error(404, "NoSuchBucket")
        else:
            getattr(self, f"_{self.command.lower()}")(s3, key, asked, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _put(self, s3: S3, key: str, asked: dict[str, str], body: bytes) -> None:
        if "uploadId" in asked:
            s3.parts[asked["uploadId"]][int(asked["partNumber"])] = body
        else:
            s3.objects[key] = body
        self._send(200, b"", ETag='"x"')

    def _get(self, s3: S3, key: str, asked: dict[str, str], _body: bytes) -> None:
        if "list-type" in asked:
            found = sorted(one for one in s3.objects if one.startswith(asked.get("prefix", "")))
            rows = "".join(
                f"<Contents><Key>{escape(one)}</Key><Size>{len(s3.objects[one])}</Size><ETag>x</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                for one in found
            )
            self._send(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode())
        elif key not in s3.objects:
            self._error(404, "NoSuchKey")
        else:
            self._send_object(s3.objects[key])

    def _send_object(self, data: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range") or "")
        facts = {"ETag": '"x"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        if wanted is None:
            self._send(200, data, **facts)
        elif int(wanted[1]) >= len(data):
            self._error(416, "InvalidRange")
        else:
            part = data[int(wanted[1]) : int(wanted[2]) + 1]
            place = f"bytes {wanted[1]}-{int(wanted[1]) + len(part) - 1}/{len(data)}"
            self._send(206, part, **facts, **{"Content-Range": place})

    def _post(self, s3: S3, key: str, asked: dict[str, str], body: bytes) -> None:
        if "delete" in asked:
            keys = [one.decode() for one in KEY.findall(body)]
            for one in keys:
                s3.objects.pop(one, None)
            deleted = "".join(f"<Deleted><Key>{one}</Key></Deleted>" for one in keys)
            self._send(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())
        elif "uploads" in asked:
            upload = uuid.uuid4().hex
            s3.parts[upload] = {}
            answer = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            self._send(200, answer.encode())
        else:
            s3.objects[key] = b"".join(part for _, part in sorted(s3.parts.pop(asked["uploadId"]).items()))
            self._send(200, b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")

    def _delete(self, s3: S3, key: str, asked: dict[str, str], _body: bytes) -> None:
        if "uploadId" in asked:
            s3.parts.pop(asked["uploadId"], None)
        else:
            s3.objects.pop(key, None)
        self._send(204, b"")

    def _error(self, status: int, code: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
