"""Hostile requests: none may cause a 5xx, stop the server or put control characters into the log.

Requests are generated from the routes of the server's own schema and of the pages. They are written to bare sockets,
since an HTTP library would reject most of them. A second server has a key that the requests do not know, and to a third
one they come with a named key that may only read.
"""

from __future__ import annotations

import base64
import json
import random
import socket
import string
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx

from app.storage.database import Database
from app.storage.keys import Caller, KeyStore
from tests.attack.report import Report, stop, tracebacks
from tests.e2e.real_server import Server, new_server

REQUESTS = 6000
KEY = "a-key-that-no-request-knows"
AT_ONCE = 8
PATIENCE_S = 5.0  # slower responses wait for the rest of the request
ANSWER_S = 60.0
PAGE_PATHS = (
    "/",
    "/config",
    "/login",
    "/docs",
    "/static/styles.css",
    "/pwa_icon/{n}",
    "/gradio_api/run/predict",
    "/gradio_api/upload",
    "/gradio_api/file={text}",
    "/gradio_api/call/{text}",
    "/gradio_api/heartbeat/{text}",
    "/theme.css",
    "/manifest.json",
    "/favicon.ico",
    "/metrics",
    "/{text}",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")
TEXTS = (
    "",
    " ",
    "null",
    "NaN",
    "-1",
    "0",
    "1e999",
    "9" * 400,
    "a" * 9000,
    "../" * 40 + "etc/passwd",
    "%00",
    "\x00",
    "\x1b[31m",
    "\r\nX: 1",
    "\u2028",
    "\ufeff",
    "\u202e",
    "é" * 200,
    "{{7*7}}",
    "' OR 1=1 --",
    "<script>alert(1)</script>",
    "http://[",
    "data:image/png;base64,AAAA",
    "data:image/png;base64," + "A" * 999,
    "file:///etc/passwd",
    "http://127.0.0.1:1/x.png",
    "<image>",
    "<image_1><image_99>",
    "THOUGHT 1:",
    "trace_",
    "img_" + "0" * 64,
    "..",
    "%2e%2e%2f",
    "?",
    "#",
    ";",
    "[",
)
HEADERS = (
    "Host",
    "Origin",
    "Referer",
    "Cookie",
    "Authorization",
    "Accept",
    "Accept-Encoding",
    "Content-Type",
    "Range",
    "If-None-Match",
    "If-Modified-Since",
    "Last-Event-ID",
    "Idempotency-Key",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Request-ID",
    "Expect",
    "Upgrade",
    "Connection",
    "Sec-Fetch-Site",
    "X-HTTP-Method-Override",
)
VALUES = (
    "http://[",
    "http://[::1",
    "[",
    "]:80",
    "null",
    "*",
    "bytes=-1",
    "bytes=9-1",
    "bytes=0-0,-1,5-",
    'W/"x"',
    "Bearer ",
    "Basic ====",
    "omni=;;=;",
    "text/event-stream;q=nan",
    "gzip;q=2",
    "application/json; charset=none",
    "100-continue",
    "multipart/form-data",
    "multipart/form-data; boundary=" + "b" * 5000,
    'multipart/form-data; boundary="',
    "websocket",
    "application/x-www-form-urlencoded; charset=\xff",
    "a" * 7000,
    "\x1b]0;title\x07",
    "\x00",
    "-1",
    "1" * 30,
    "é",
    "Sun, 99 Foo 0000 99:99:99 GMT",
    "cross-site",
    "DELETE",
    "999.999.999.999",
    "xn--a",
    "127.0.0.1:99999",
    "@",
)


def attack(folder: Path, report: Report, rng: random.Random, scale: float) -> None:
    total = max(40, round(REQUESTS * scale))
    servers = {name: new_server(folder / name) for name in ("open", "locked", "reader")}
    for name in ("locked", "reader"):
        servers[name].environment["OMNI_R1_API_KEY"] = KEY
    statuses: Counter[int] = Counter()
    try:
        for (name, server), share in zip(servers.items(), (0.6, 0.2, 0.2), strict=True):
            server.home.parent.mkdir(parents=True, exist_ok=True)
            server.start()
            key = reader_key(server) if name == "reader" else ""
            found = fire(server, report, rng, round(total * share), key)
            statuses += found
            with server.client() as client:
                report.row(f"fuzz_{name}_ready_after", float(client.readiness()["phase"] == "ready"), "bool")
            stop(server, report, f"fuzz_{name}")
            tracebacks(server, report, f"fuzz_{name}")
            log = server.log.read_bytes()
            controls = sum(log.count(bytes([code])) for code in range(32) if code not in (9, 10))
            report.row(f"fuzz_{name}_control_characters_logged", controls, "count", limit=0)
            if name != "open":
                let_in = sum(count for status, count in found.items() if status in (201, 202, 204))
                report.row(f"fuzz_{name}_let_in", let_in, "count", limit=0)
                logged = sum(log.count(secret.encode()) for secret in (KEY, key) if secret)
                report.row(f"fuzz_{name}_keys_logged", logged, "count", limit=0)
    finally:
        for server in servers.values():
            server.kill()
    report.row("fuzz_requests", statuses.total(), "count")
    report.row("fuzz_unanswered", statuses[0], "count")
    report.row("fuzz_5xx", sum(n for status, n in statuses.items() if status >= 500), "count", limit=0)


def reader_key(server: Server) -> str:
    """A named key that may only read."""
    database = Database(f"sqlite:///{server.home / 'omni-r1.db'}")
    key = KeyStore(database).add(Caller("reader", "read"))
    database.close()
    return key


def fire(server: Server, report: Report, rng: random.Random, count: int, key: str) -> Counter[int]:
    """Sends `count` requests, a few at a time; returns the statuses, 0 for connections closed without a response."""
    schema = httpx.get(f"{server.url}/openapi.json", headers={"Authorization": f"Bearer {KEY}"}, timeout=60).json()
    paths = [*schema["paths"], *PAGE_PATHS]
    address = urlsplit(server.url)
    requests = [make_request(rng, paths, f"{address.hostname}:{address.port}", key) for _ in range(count)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda raw: send(str(address.hostname), int(address.port or 80), raw), requests))
    for raw, status in zip(requests, answers, strict=True):
        if status >= 500:
            report.finding("fuzz", f"{status} for {raw[:300]!r}")
    return Counter(answers)


def send(host: str, port: int, raw: bytes) -> int:
    """The response's status; 0 if the server closed the connection without one."""
    with socket.create_connection((host, port), timeout=PATIENCE_S) as connection:
        try:
            connection.sendall(raw)
            try:
                head = connection.recv(64)
            except TimeoutError:  # it waits for the rest of the body
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(ANSWER_S)
                head = connection.recv(64)
        except ConnectionError:
            return 0
    return int(head[9:12]) if head.startswith(b"HTTP/1.") and head[9:12].isdigit() else 0


def make_request(rng: random.Random, paths: Sequence[str], host: str, key: str) -> bytes:
    """One request as bytes: mostly well-formed, with one to three faults, and with the key unless that is empty."""
    path = fill(rng, rng.choice(paths))
    if rng.random() < 0.4:
        path += "?" + "&".join(
            f"{quote(text(rng), safe='')}={quote(text(rng), safe='%')}" for _ in range(rng.randint(1, 3))
        )
    method = rng.choice(METHODS) if rng.random() < 0.4 else rng.choice(("GET", "POST", "POST", "DELETE"))
    kind, body = make_body(rng) if method in ("POST", "PUT", "PATCH") else ("", b"")
    headers = {"Host": host, "Connection": "close", "Content-Length": str(len(body))}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    if kind:
        headers["Content-Type"] = kind
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        headers[rng.choice(HEADERS)] = rng.choice(VALUES)
    if rng.random() < 0.03:
        headers["Content-Length"] = rng.choice(("-1", "x", "99999999999999999999", "3"))
    if rng.random() < 0.03:
        headers["Transfer-Encoding"] = "chunked"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("utf-8", "surrogatepass") + body


def fill(rng: random.Random, path: str) -> str:
    """The path with a hostile value for each parameter; spaces and line ends quoted, so that it stays one word."""
    while "{" in path:
        before, _, rest = path.partition("{")
        name, _, after = rest.partition("}")
        value = str(rng.choice((0, 1, 192, 999, -1))) if name == "n" else text(rng)
        path = before + quote(value, safe="%[]{}" if rng.random() < 0.1 else "%").replace("{", "%7B") + after
    return path


def text(rng: random.Random) -> str:
    """A hostile text from the list, or random characters."""
    if rng.random() < 0.7:
        return rng.choice(TEXTS)
    return "".join(rng.choice(string.printable + "äß中\u0000\u202e\U0001f600") for _ in range(rng.randint(1, 40)))


def make_body(rng: random.Random) -> tuple[str, bytes]:
    """A content type and a body that may not match it."""
    makers: Sequence[Callable[[random.Random], tuple[str, bytes]]] = (
        json_body,
        json_body,
        json_body,
        odd_json,
        form,
        raw,
    )
    return rng.choice(makers)(rng)


FIELDS = (
    "question",
    "images",
    "task_id",
    "checkpoint",
    "mode",
    "sampling",
    "partial_images",
    "background",
    "metadata",
    "method",
    "base_checkpoint",
    "data",
    "hyperparameters",
    "seed",
    "activate",
    "output_name",
    "source",
    "name",
    "drain",
    "key",
    "answer",
    "reference",
    "choices",
    "path",
    "temperature",
    "image_id",
    "data_url",
    "fit",
    "threads",
    "gpu",
)


def value(rng: random.Random, depth: int = 0) -> object:
    kinds = rng.randrange(10 if depth < 3 else 8)
    if kinds < 3:
        return text(rng)
    if kinds < 8:
        return rng.choice((None, True, False, 0, -1, 2**53, 2**63, 2**64, 10**300, 0.5, -0.0, 1e308, [], {}))
    if kinds == 8:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return {rng.choice((rng.choice(FIELDS), text(rng))): value(rng, depth + 1) for _ in range(rng.randint(0, 4))}


def json_body(rng: random.Random) -> tuple[str, bytes]:
    body: dict[str, object] = {rng.choice(FIELDS): value(rng) for _ in range(rng.randint(0, 5))}
    if rng.random() < 0.5:
        body |= rng.choice(
            (
                {"question": "How many?", "images": [{"data_url": "data:image/png;base64," + text(rng)}]},
                {
                    "method": rng.choice(("pesft", "perpo", "zero", "benchmark", "pipeline")),
                    "data": {"source": text(rng)},
                },
                {"source": text(rng)},
                {"mode": text(rng)},
                {"question": text(rng), "images": value(rng)},
            )
        )
    return "application/json", json.dumps(body).encode()


def odd_json(rng: random.Random) -> tuple[str, bytes]:
    body = rng.choice(
        (
            b"[" * 2000,
            b'{"a":' * 3000,
            b"NaN",
            b"Infinity",
            b'{"question": NaN}',
            b'{"question": "\\ud800"}',
            b"\xff\xfe{}",
            b'{"a": 1',
            b'{"a": 1}{"a": 2}',
            b'{"a": ' + b"9" * 10000 + b"}",
            b'"' + b"\\u0000" * 100 + b'"',
            b"",
            b"\x00" * 64,
            b'{"question": "x", "question": "y"}',
            "{“a”: 1}".encode(),
            b"\xed\xa0\x80",
            b"[" * 2000 + b"]" * 2000,
        )
    )
    return rng.choice(("application/json", "application/json", "text/plain", "application/json; charset=utf-16")), body


def form(rng: random.Random) -> tuple[str, bytes]:
    boundary = rng.choice(("b", "b" * 70, "b" * 5000, ""))
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="{rng.choice(FIELDS)}"'
    if rng.random() < 0.6:
        part = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{text(rng)[:80]}"'
    body = f"{part}\r\n\r\n{text(rng)}\r\n".encode("utf-8", "replace")
    if rng.random() < 0.7:
        body += f"--{boundary}--\r\n".encode()
    if rng.random() < 0.2:
        return "application/x-www-form-urlencoded", b"key=" + b"[" * 2000
    return f"multipart/form-data; boundary={boundary}", body


def raw(rng: random.Random) -> tuple[str, bytes]:
    kind = rng.choice(("image/png", "image/jpeg", "image/svg+xml", "application/x-ndjson", "application/octet-stream"))
    heads = (
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
        b"RIFF\x00\x00\x00\x00WEBP",
        b"BM",
        b"%!PS",
        b"<svg/>",
        b"",
    )
    body = rng.choice(heads) + rng.randbytes(rng.choice((0, 1, 100, 5000)))
    if rng.random() < 0.2:
        body = base64.b64encode(body)
    return kind, body
