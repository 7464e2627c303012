"""What branches, groups and the questions about images cost: `python -m tests.benchmarks.branches`.

Starts a server of its own and prints one JSON object a line, {name, ours, peer, ratio, unit}:

* `eight_samples`: a group of 8 against one trace of the same question, in alternation (the ratio is group / one);
* `branch_first_text`: POST of a branch to its first new text;
* `edit_first_text`: the same with an image in the body that has to be encoded;
* `reliance`: the reliance of a trace with three images, against the time of the trace;
* `interventions`: `previous` on all its steps, likewise;
* `token_bytes`: bytes that the database holds for each token of a trace;
* `token_storage`: time to store a trace's tokens, as a share of the trace's time.
"""

from __future__ import annotations

import base64
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from PIL import Image

from app.client import Client
from app.storage import tables
from app.storage.database import Database
from app.traces.records import tokens
from tests.e2e.real_server import new_server

SEED = 1_000_000_000
ROUNDS = 9


def main() -> int:
    """Run every row."""
    with tempfile.TemporaryDirectory() as folder:
        server = new_server(Path(folder))
        try:
            server.start()
            with server.client() as client, httpx.Client(base_url=server.url, timeout=120) as http:
                eight_samples(client, http)
                first_texts(client, http)
                questions(client, http)
        finally:
            server.stop()
        storage(Path(folder))
    return 0


def eight_samples(client: Client, http: httpx.Client) -> None:
    """A group of 8 and one trace of the same question in turn."""
    ones, eights = [], []
    for number in range(ROUNDS + 1):
        task = client.task(slice="operational", seed=SEED + number)
        for count, times in ((1, ones), (8, eights)):
            started = time.perf_counter()
            body = {"question": task["question"], "images": [{"image_id": task["image_id"]}], "n": count}
            post(http, "/v1/traces", body | {"sampling": {"temperature": 1.0, "seed": number}})
            times.append(time.perf_counter() - started)
    ratios = [eight / one for one, eight in zip(ones[1:], eights[1:], strict=True)]
    row("eight_samples", statistics.median(eights[1:]), statistics.median(ones[1:]), "s", statistics.median(ratios))


def questions(client: Client, http: httpx.Client) -> None:
    """Reliance and interventions of greedy traces with three images."""
    traces, reliance, interventions = [], [], []
    number = 0
    while len(traces) <= ROUNDS:
        task, number = client.task(slice="operational", seed=SEED + number), number + 1
        started = time.perf_counter()
        trace = client.create_trace(task["question"], [task["image_id"]], sampling={"temperature": 0.0})
        for _ in client.events(trace["id"]):
            pass
        took = time.perf_counter() - started
        if sum("image" in step for step in client.trace(trace["id"])["steps"]) != 3:
            continue
        traces.append(took)
        url = f"/v1/traces/{trace['id']}"
        reliance.append(timed(lambda url=url: http.post(f"{url}/reliance").raise_for_status()))
        interventions.append(timed(lambda trace=trace: whole_group(client, trace["id"])))
    for name, times in (("reliance", reliance), ("interventions", interventions)):
        ratios = [one / trace for one, trace in zip(times[1:], traces[1:], strict=True)]
        row(name, statistics.median(times[1:]), statistics.median(traces[1:]), "s", statistics.median(ratios))


def whole_group(client: Client, trace_id: str) -> None:
    """Interventions with `previous` on all steps, to their last event."""
    for _ in client.group_events(client.intervene(trace_id)["id"]):
        pass


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def first_texts(client: Client, http: httpx.Client) -> None:
    """POST of a branch to its first new text: unedited, and with an image to encode."""
    red = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(red, "PNG")
    image = {"data_url": f"data:image/png;base64,{base64.b64encode(red.getvalue()).decode()}"}
    plain, edited = [], []
    for number in range(ROUNDS + 1):
        task = client.task(slice="operational", seed=SEED + number)
        trace = client.create_trace(task["question"], [task["image_id"]], sampling={"temperature": 0.0})
        for _ in client.events(trace["id"]):
            pass
        url = f"/v1/traces/{trace['id']}/branches"
        plain.append(post(http, url, {"after_step": 1}, until=is_text))
        edited.append(post(http, url, {"after_step": 1, "edits": [{"step": 1, "image": image}]}, until=is_text))
    row("branch_first_text", statistics.median(plain[1:]) * 1000, None, "ms")
    row("edit_first_text", statistics.median(edited[1:]) * 1000, None, "ms")


def is_text(line: str) -> bool:
    return line in ("event: text.delta", "event: answer.delta")


def post(
    http: httpx.Client, url: str, body: dict[str, Any], *, until: Callable[[str], bool] = lambda _: False
) -> float:
    """Seconds until a line of the stream that the POST opens, or until its end."""
    started = time.perf_counter()
    with http.stream("POST", url, json=body, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.status_code == 201, answer.read()
        for line in answer.iter_lines():
            if until(line):
                break
    return time.perf_counter() - started


def storage(folder: Path) -> None:
    """Size and time of the tokens of the traces that ran."""
    (file,) = folder.rglob("*.db")
    db = Database(f"sqlite:///{file}")
    with db.read() as connection:
        pages = sa.text("SELECT sum(pgsize) FROM dbstat WHERE name = 'trace_tokens'")
        size = connection.execute(pages).scalar() or 0
        stored = [
            (found.id, found.timings["total_ms"], tokens.response_of(connection, found.id))
            for found in connection.execute(sa.select(tables.traces.c.id, tables.traces.c.timings))
        ]
    traces = [(id_, ms, response) for id_, ms, response in stored if response is not None and ms]
    count = sum(len(part.ids) for _, _, found in traces for part in (*found.steps, found.last))
    row("token_bytes", size / count, None, "bytes/token")
    shares = []
    for id_, total_ms, found in traces:
        with db.write() as connection:
            connection.execute(sa.delete(tables.trace_tokens).where(tables.trace_tokens.c.trace_id == id_))
            started = time.perf_counter()
            for part, chunk in [(tokens.LAST, found.last), *enumerate(found.steps, 1)]:
                tokens.put(connection, id_, part, chunk)
            shares.append((time.perf_counter() - started) * 1000 / total_ms)
    row("token_storage", statistics.median(shares), None, "of the trace's time")
    db.close()


def row(name: str, ours: float, peer: float | None, unit: str, ratio: float | None = None) -> None:
    shown = {"name": name, "ours": round(ours, 5), "peer": peer and round(peer, 5), "ratio": ratio and round(ratio, 3)}
    print(json.dumps(shown | {"unit": unit}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
