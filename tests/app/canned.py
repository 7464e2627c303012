"""A small canned server on a real port, for the command line."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STORED = {"image_id": "img-q", "url": "/v1/images/img-q", "width": 64, "height": 64}
TASK = {
    "task_id": "natural-1000000123",
    "slice": "natural",
    "family": "find",
    "seed": 1000000123,
    "question": "Which colour has the star?",
    "image_id": "img-q",
    "image": STORED,
}
REVEALED = TASK | {
    "answer": "red",
    "steps": [{"index": 1, "text": "I box it.", "skill": "box", "action": "BBOX(0,0,1,1)", "image": STORED}],
}
EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("trace.queued", {"position": 2}),
    ("trace.started", {"seed": 5}),
    ("step.started", {"step": 1}),
    ("text.delta", {"step": 1, "text": " I box"}),
    ("text.delta", {"step": 1, "text": " it.\x1b[31m"}),
    ("image.completed", {"step": 1, "image_id": "img-1", "url": "/v1/images/img-1"}),
    ("step.completed", {"step": 1}),
    ("answer.delta", {"text": " red"}),
    ("trace.completed", {"answer": "red"}),
]
BRANCH_EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("trace.queued", {"position": 0}),
    ("trace.started", {"seed": 5}),
    ("step.kept", {"step": 1, "text": "I box it.", "edited": False, "image": {"url": "/v1/images/img-1"}}),
    ("step.kept", {"step": 2, "text": "I look\x1b again.", "edited": True}),
    *EVENTS[2:],
]
GROUP_EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("trace.queued", {"trace_id": "t1", "position": 0}),
    ("trace.queued", {"trace_id": "b1", "position": 0}),
    ("trace.completed", {"trace_id": "t1", "answer": "red"}),
    ("answer.delta", {"trace_id": "b1", "text": " blue"}),
    ("trace.completed", {"trace_id": "b1", "answer": "blue"}),
    ("group.completed", {"status": "completed"}),
]


def effect(step: int, kind: str, after: str | None, *, later: int | None = 0) -> dict[str, Any]:
    """What a replacement did to the answer "red"."""
    changed = None if later is None else after != "red"
    return {
        "trace_id": "b1",
        "step": step,
        "with": kind,
        "answer_before": "red",
        "answer_after": after,
        "changed": changed,
        "verdict_before": None,
        "verdict_after": None,
        "later_images_changed": later,
    }


RELIANCE = {
    "answer_logprob": -0.1,
    "images": [
        {"step": 0, "image_id": "img-q", "reliance": -0.004, "per_step": [1.0]},
        {"step": 1, "image_id": "img-1", "reliance": 12.358, "per_step": [0.0]},
    ],
    "method": "masking",
}


def finished(status: str = "completed") -> dict[str, Any]:
    return {
        "id": "t1",
        "status": status,
        "answer": "red" if status == "completed" else None,
        "checkpoint": "nano-omni-r1",
        "sampling": {"seed": 5},
        "steps": [{"index": 1, "text": "I box it.", "image": {"url": "/v1/images/img-1"}}, {"index": 2, "text": "So."}],
        "timings": {"total_ms": 1234},
        "verdict": {"answer": "right", "drawings_right": 1, "drawings_total": 1},
        "error": None if status == "completed" else {"code": "engine_died", "detail": "the engine died; ask again"},
    }


def group(*answers: str | None) -> dict[str, Any]:
    """A finished group of `t1` and `b1` in which each answer was given once."""
    return {
        "id": "g1",
        "status": "completed",
        "trace_ids": ["t1", "b1"],
        "tally": [{"answer": answer, "count": 1, "share": 0.5, "mean_logprob": -0.1} for answer in answers],
        "agreement": 0.5,
    }


class Canned(ThreadingHTTPServer):
    """Answers like the studio, from `answers`; records requests in `calls`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[tuple[str, str, bytes]] = []
        self.cancelled = threading.Event()
        self.hang = False
        self.looked = threading.Event()  # at /readyz
        self.slow: set[str] = set()  # calls whose answers wait for that
        self.answers: dict[str, tuple[int, Any]] = {
            "POST /v1/images": (201, STORED),
            "POST /v1/traces": (201, {"id": "t1", "status": "queued"}),
            "GET /v1/traces/t1": (200, finished()),
            "POST /v1/traces/t1/cancel": (200, finished("cancelled")),
            "POST /v1/traces/t1/branches": (201, {"data": [{"id": "b1", "group_id": None}]}),
            "GET /v1/traces/b1": (200, finished() | {"id": "b1", "answer": "blue"}),
            "GET /v1/groups/g1": (200, group("red", "blue")),
            "POST /v1/groups/g1/cancel": (200, group(None)),
            "POST /v1/traces/t1/reliance": (200, RELIANCE),
            "POST /v1/traces/t1/interventions": (202, {"id": "g1"}),
            "GET /v1/images/img-1": (200, b"PNG of step 1"),
            "GET /v1/images/img-q": (200, b"PNG of the question"),
            "GET /v1/tasks": (200, TASK),
            "GET /v1/checkpoints": (
                200,
                {
                    "data": [
                        {
                            "id": "nano-omni-r1",
                            "active": True,
                            "loaded": True,
                            "size_bytes": 12_300_000,
                            "licence": "MIT",
                            "base": "nano-base",
                        },
                        {"id": "broken", "active": False, "loaded": False, "size_bytes": 0, "problem": "no tokenizer"},
                    ]
                },
            ),
            "GET /v1/checkpoints/nano-omni-r1": (200, {"id": "nano-omni-r1"}),
            "POST /v1/checkpoints": (201, {"id": "mine"}),
            "POST /v1/checkpoints/mine/activate": (200, {"id": "mine", "active": True, "weight_version": 7}),
            "DELETE /v1/checkpoints/mine": (204, b""),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def body_of(self, call: str) -> dict[str, Any]:
        return next(json.loads(body) for method, path, body in self.calls if f"{method} {path}" == call)


class Handler(BaseHTTPRequestHandler):
    server: Canned
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.split("?")[0]
        self.server.calls.append((self.command, self.path, body))
        if path.endswith("/events"):
            self.stream(GROUP_EVENTS if "/groups/" in path else BRANCH_EVENTS if "/b1/" in path else EVENTS)
            return
        if f"{self.command} {path}" in self.server.slow:
            self.server.looked.wait(60)
        missing = (404, {"code": "not_found", "detail": f"nothing at {path}", "status": 404, "title": "Not found"})
        status, content = self.server.answers.get(f"{self.command} {path}", missing)
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
        if path.endswith("/cancel"):
            self.server.cancelled.set()
        if path == "/readyz":
            self.server.looked.set()

    do_GET = do_POST = do_DELETE = answer

    def stream(self, events: list[tuple[str, dict[str, Any]]]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for seq, (kind, data) in enumerate(events, start=1):
            if self.server.hang and kind == "answer.delta":
                self.server.cancelled.wait(60)
                break
            self.wfile.write(f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode())
            self.wfile.flush()
        self.close_connection = True
