"""Random logs of traces, as the runner writes them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

Log = list[tuple[str, dict[str, Any]]]

TRACE: dict[str, Any] = {
    "id": "tr_1",
    "created_at": "2026-11-28T16:04:16.202Z",
    "checkpoint": "nano-omni-r1",
    "sampling": {"temperature": 0.0, "top_p": 1.0},
}
REQUEST: dict[str, Any] = {
    "background": False,
    "max_output_tokens": None,
    "metadata": {"a": "b"},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning_summary": None,
    "tool_choice": "auto",
    "user": None,
}
USAGE = {"prompt_tokens": 80, "kept_tokens": 0, "completion_tokens": 160, "images": 2}


def texts(rng: random.Random) -> list[str]:
    """The pieces of a text, some with white space around them or nothing else."""
    return [rng.choice(["I", " look", " ", "\n", "for it. ", "é", ""]) for _ in range(rng.randint(0, 6))]


def random_log(rng: random.Random) -> Log:
    """A whole log; it may end anywhere."""
    log: Log = [("trace.queued", {"position": 1})]
    log += [("trace.queued", {"position": 0}), ("trace.started", {"seed": 1})]
    for step in range(1, rng.randint(1, 4)):
        log += list(_step(rng, step))
        if rng.random() < 0.2:
            log += [
                ("trace.paused", {"step": step}),
                ("trace.queued", {"position": 0}),
                ("trace.resumed", {"mode": "auto"}),
            ]
    answer = texts(rng)
    log += [("answer.delta", {"text": text}) for text in answer]
    whole = "".join(answer).strip() or None
    end = rng.choice(["stop", "length", "cancelled", "failed", "unmarked"])
    if end in ("cancelled", "failed"):
        log = log[: rng.randint(1, len(log))]
        error = {"code": "interrupted", "detail": "the server stopped"}
        return [
            *log,
            ("trace.cancelled", {"reason": "user"}) if end == "cancelled" else ("trace.failed", {"error": error}),
        ]
    done: dict[str, Any] = {"answer": whole, "finish_reason": end if end == "length" else "stop", "usage": USAGE}
    if end == "unmarked":
        log = [event for event in log if event[0] != "answer.delta"]
        done["unmarked"] = True
    return [*log, ("trace.completed", done)]


def _step(rng: random.Random, step: int) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "step.started", {"step": step}
    for text in texts(rng):
        yield "text.delta", {"step": step, "text": text}
    if rng.random() < 0.8:
        yield "image.started", {"step": step, "skill": "box"}
        for index in range(rng.randint(0, 3)):
            url = rng.choice([None, f"/v1/traces/tr_1/partials/{step}-{index}"])
            yield "image.partial", {"step": step, "index": index, "codes_done": 8, "codes_total": 64, "url": url}
        yield "image.completed", {"step": step, "image_id": f"{step:064d}", "width": 64, "height": 64}
    yield "step.completed", {"step": step}
