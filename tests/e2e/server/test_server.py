"""A real server over HTTP, and the real command line with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app.client import BadInput, Client, Conflict
from app.client.sse import Event, EventParser
from app.client.types import Trace
from tests.app.stream_events import check_event
from tests.e2e.real_server import ROOT, Server
from tests.near_ties import assert_same_image
from tests.patience import PATIENCE_S


def ask(client: Client, seed: int = 1_000_000_000, **options: object) -> Trace:
    task = client.task(slice="operational", seed=seed)
    return client.create_trace(task["question"], [task["image_id"]], task_id=task["task_id"], **options)  # type: ignore[arg-type]


def joined(events: list[Event], kind: str, step: int | None = None) -> str:
    return "".join(e.data["text"] for e in events if e.type == kind and (step is None or e.data["step"] == step))


def test_trace_and_its_events_agree(client: Client) -> None:
    created = ask(client, partial_images=4, sampling={"seed": 11})
    events = list(client.events(created["id"]))
    trace = client.trace(created["id"])

    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.type for event in events if event.terminal] == ["trace.completed"]
    assert events[-1].terminal
    assert trace["status"] == "completed"
    assert trace["sampling"]["seed"] == 11
    assert trace["usage"] is not None
    assert trace["usage"]["images"] == len([step for step in trace["steps"] if step.get("image")])
    for step in trace["steps"]:
        assert joined(events, "text.delta", step["index"]).strip() == step["text"].strip()
    assert joined(events, "answer.delta").strip() == (trace["answer"] or "")
    for event in events:
        check_event("traces", event.type, event.data)
        if event.type == "image.completed":
            assert client.fetch(event.data["url"]).startswith(b"\x89PNG")


def test_stored_trace_replays_from_any_position(client: Client) -> None:
    created = ask(client)
    live = list(client.events(created["id"]))
    for after in {0, 1, len(live) // 2, len(live) - 1}:
        assert [event.raw for event in client.events(created["id"], after=after)] == [e.raw for e in live[after:]]
    assert list(client.events(created["id"], after=len(live))) == []


def test_streaming_post_returns_the_same_events(server: Server, client: Client) -> None:
    task = client.task(slice="natural", seed=1_000_000_001)
    body = {"question": task["question"], "images": [{"image_id": task["image_id"]}], "sampling": {"seed": 3}}
    parser, events = EventParser(), []
    headers = {"Accept": "text/event-stream"}
    with httpx.stream("POST", f"{server.url}/v1/traces", json=body, headers=headers, timeout=PATIENCE_S) as response:
        assert response.status_code == 201
        location = response.headers["location"]
        for chunk in response.iter_bytes():
            events += parser.feed(chunk)
    assert events[-1].terminal
    assert [e.raw for e in client.events(location.rsplit("/", 1)[1])] == [e.raw for e in events]


def test_same_request_gives_the_same_trace(client: Client) -> None:
    found = []
    for _ in range(2):  # one at a time: batching may change a near tie
        created = ask(client, sampling={"seed": 5, "temperature": 1.0})
        list(client.events(created["id"]))
        found.append(client.trace(created["id"]))
    one, two = found
    assert [step["text"] for step in one["steps"]] == [step["text"] for step in two["steps"]]
    assert one["answer"] == two["answer"]
    for mine, theirs in zip(one["steps"], two["steps"], strict=True):
        images = [step.get("image") for step in (mine, theirs)]
        assert bool(images[0]) == bool(images[1])
        if all(images):
            assert_same_image(*(client.fetch(image["url"]) for image in images))


def test_cancelled_trace_can_be_deleted(client: Client) -> None:
    created = ask(client, mode="step")
    cancelled = client.cancel(created["id"])
    assert cancelled["status"] in ("cancelled", "completed")
    assert client.cancel(created["id"])["status"] == cancelled["status"]
    with pytest.raises(Conflict):
        client.continue_(created["id"])
    client.delete(created["id"])


def test_bad_requests_get_clear_errors(server: Server, client: Client) -> None:
    with pytest.raises(BadInput):
        client.create_trace("")
    with pytest.raises(BadInput):
        client.upload_image(b"<svg/>")
    answer = httpx.post(f"{server.url}/v1/traces", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"]


def test_command_line_answers_a_task(server: Server, tmp_path: Path) -> None:
    done = omni(server, "task", "diagrammatic-1000000002", "--ask", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    trace = json.loads((tmp_path / "out" / "trace.json").read_text())
    assert trace["status"] == "completed"
    assert trace["task_id"] == "diagrammatic-1000000002"
    drawn = [step for step in trace["steps"] if step.get("image")]
    assert len(list((tmp_path / "out").glob("step-*.png"))) == len(drawn)


def test_command_line_branches_a_trace(server: Server, client: Client, tmp_path: Path) -> None:
    parent = ask(client, sampling={"temperature": 1.0, "seed": 3})
    list(client.events(parent["id"]))
    parent = client.trace(parent["id"])
    done = omni(server, "branch", parent["id"], "--after", "1", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"1  {parent['steps'][0]['text']} (kept)")
    branch = json.loads((tmp_path / "out" / "trace.json").read_text())
    assert branch["parent"]["trace_id"] == parent["id"]
    assert branch["answer"] == parent["answer"]
    drawn = [step for step in branch["steps"] if step.get("image")]
    assert len(list((tmp_path / "out").glob("step-*.png"))) == len(drawn)
    many = omni(server, "branch", parent["id"], "--after", "0", "--n", "3", "--temperature", "1", "--json")
    assert many.returncode == 0, many.stderr
    group = json.loads(many.stdout)
    assert sum(entry["count"] for entry in group["tally"]) == len(group["trace_ids"]) == 3
    assert client.group(group["id"]) == group


def test_command_line_answers_about_an_own_image(server: Server, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (90, 70), "red").save(tmp_path / "mine.png")
    done = omni(server, "ask", str(tmp_path / "mine.png"), "Which colour?", "--fit", "pad", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "completed"


def test_command_line_shows_checkpoints(server: Server) -> None:
    done = omni(server, "checkpoints")
    assert done.returncode == 0, done.stderr
    assert "active" in done.stdout


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["ask", "no-such-file.png", "Why?"], 2),
        (["ask", "README.md", "Is this a picture?"], 2),
        (["ask", "docs", "Is this a picture?"], 2),
        (["task", "--seed", "-1"], 2),
        (["checkpoints", "show", "no-such-checkpoint"], 2),
        (["branch", "tr_none", "--after", "1"], 2),
    ],
)
def test_bad_command_line_input_exits_with_2(server: Server, argv: list[str], code: int) -> None:
    done = omni(server, *argv)
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def omni(server: Server, *argv: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", *argv, "--url", server.url]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
