"""Start, stop and kill of a real server, and what the next start does."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from app.client import Client, NotReady, OmniError
from app.client.sse import Event
from app.client.types import Sampling
from tests.e2e.real_server import ROOT, Server, wait_until
from tests.e2e.server.test_server import ask
from tests.patience import PATIENCE_S

LIVE = ("queued", "running")


def start_many(client: Client, count: int) -> list[str]:
    """More traces than the engine has slots, started quickly, so that some run and some wait."""
    task = client.task(slice="operational", seed=1_000_000_000)
    sampling: Sampling = {"temperature": 1.0}
    return [client.create_trace(task["question"], [task["image_id"]], sampling=sampling)["id"] for _ in range(count)]


def read_until(client: Client, trace_id: str, kind: str) -> list[Event]:
    """The events of a trace up to the first of that type."""
    events = []
    for event in client.events(trace_id):
        events.append(event)
        if event.type == kind:
            return events
    raise AssertionError(f"{trace_id} ended without {kind}")


def test_log_after_kill_9_ends_interrupted(fresh_server: Server) -> None:
    server = fresh_server.start()
    with server.client() as client:
        early = ask(client)["id"]
        seen = {early: read_until(client, early, "step.started")}
        late = start_many(client, 40)
        seen[late[-1]] = read_until(client, late[-1], "trace.queued")
        server.kill()
    ids = [early, *late]

    server.start()
    with server.client() as client:
        interrupted = 0
        for trace_id in ids:
            log = list(client.events(trace_id))
            known = seen.get(trace_id, [])
            assert [event.raw for event in log[: len(known)]] == [event.raw for event in known]
            assert [event.seq for event in log] == list(range(1, len(log) + 1))
            assert [event.terminal for event in log] == [False] * (len(log) - 1) + [True]
            trace = client.trace(trace_id)
            if log[-1].type == "trace.failed":
                interrupted += 1
                assert log[-1].data["error"]["code"] == "interrupted"
                assert trace["status"] == "interrupted"
            else:
                assert trace["status"] == "completed"
        assert interrupted > 0
        assert list(client.events(ask(client)["id"]))[-1].type == "trace.completed"
    assert server.stop() == 0


def test_group_after_kill_9_has_one_end(fresh_server: Server) -> None:
    server = fresh_server.start()
    with server.client() as client:
        root = ask(client, sampling={"temperature": 1.0, "seed": 3})["id"]
        list(client.events(root))
        groups = [ask(client, n=16, sampling={"temperature": 1.0})["group_id"] for _ in range(2)]
        groups.append(client.branch(root, 0, n=16)[0]["group_id"])
        intervention = client.intervene(root, ["previous", "blank", "question", "other", "reference", "none"])
        groups.append(intervention["id"])
        ids = [str(group_id) for group_id in groups]
        seen: dict[str, list[Event]] = {group_id: [] for group_id in ids}
        for event in client.group_events(ids[0]):
            seen[ids[0]].append(event)
            if event.type == "step.completed":
                break
        server.kill()

    server.start()
    with server.client() as client:
        interrupted = 0
        for group_id in ids:
            log = list(client.group_events(group_id))
            assert [event.raw for event in log[: len(seen[group_id])]] == [event.raw for event in seen[group_id]]
            assert [event.seq for event in log] == list(range(1, len(log) + 1))
            assert [event.type for event in log if event.type == "group.completed"] == [log[-1].type]
            group = client.group(group_id)
            assert group["status"] == "completed"
            assert len(group["trace_ids"]) == sum(entry["count"] for entry in group["tally"])
            ends = [event.data["trace_id"] for event in log if event.terminal]
            assert sorted(ends) == group["trace_ids"]
            for trace_id in group["trace_ids"]:
                trace, own = client.trace(trace_id), list(client.events(trace_id))
                assert trace["status"] in ("completed", "interrupted")
                interrupted += trace["status"] == "interrupted"
                mine = [(event.type, event.data) for event in log if event.data.get("trace_id") == trace_id]
                assert mine == [(event.type, {"trace_id": trace_id} | event.data) for event in own]
            if group_id == intervention["id"]:
                effects = group.get("effects", [])
                assert log[-1].data["effects"] == effects
                assert [effect["trace_id"] for effect in effects] == intervention["trace_ids"]
                for effect in effects:
                    completed = client.trace(effect["trace_id"])["status"] == "completed"
                    assert (effect["changed"] is not None) == completed
            else:
                assert len(group["trace_ids"]) == 16
            for after in (1, len(log) // 2, len(log) - 1):
                assert list(client.group_events(group_id, after)) == log[after:]
        assert interrupted > 0
        assert {group["id"] for group in client.groups()["data"]} == set(ids)
        again = client.branch(root, 0, n=2)[0]["group_id"]
        assert list(client.group_events(again or ""))[-1].type == "group.completed"
    assert server.stop() == 0


def test_kill_9_leaves_no_engine(fresh_server: Server) -> None:
    server = fresh_server.start()
    with server.client() as client:
        read_until(client, start_many(client, 20)[0], "trace.started")
    children = server.children()
    assert children
    server.kill()
    wait_until(lambda: not any(alive(child) for child in children), "the engine's end", 60)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_stop_ends_traces_and_informs_readers(fresh_server: Server, sig: signal.Signals) -> None:
    server = fresh_server.start()
    children = server.children()
    with server.client() as client:
        ids = start_many(client, 40)
        reader = Reader(server, ids[-1])
        reader.wait_for("trace.queued")
        assert server.stop(sig) == 0
    reader.join(60)
    assert reader.events[-1].type == "trace.failed"
    assert reader.events[-1].data["error"]["code"] == "interrupted"
    wait_until(lambda: not any(alive(child) for child in children), "the engine's end", 60)

    server.start()
    with server.client() as client:
        assert not [t for t in client.traces(limit=100)["data"] if t["status"] in LIVE]
        assert [event.raw for event in client.events(ids[-1])] == [event.raw for event in reader.events]


class Reader(threading.Thread):
    """Follows one trace in its own thread."""

    def __init__(self, server: Server, trace_id: str) -> None:
        super().__init__(daemon=True)
        self.server, self.trace_id = server, trace_id
        self.events: list[Event] = []
        self.error: OmniError | None = None
        self.changed = threading.Condition()
        self.start()

    def run(self) -> None:
        try:
            with self.server.client() as client:
                for event in client.events(self.trace_id, give_up_s=PATIENCE_S):
                    with self.changed:
                        self.events.append(event)
                        self.changed.notify_all()
        except OmniError as error:
            self.error = error

    def wait_for(self, kind: str, timeout_s: float = PATIENCE_S) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: any(e.type == kind for e in self.events), timeout_s), self.error


def test_reader_follows_a_paused_trace_across_a_restart(fresh_server: Server) -> None:
    server = fresh_server.start()
    with server.client() as client:
        trace_id = ask(client, mode="step", sampling={"temperature": 0.0})["id"]
        reader = Reader(server, trace_id)
        reader.wait_for("trace.queued")
        wait_until(lambda: client.trace(trace_id)["status"] not in LIVE, "a pause or an end")
        if client.trace(trace_id)["status"] != "paused":
            pytest.skip("this checkpoint's trace has no step to pause after")
        reader.wait_for("trace.paused")
    server.port = int(server.url.rsplit(":", 1)[1])  # the reader reconnects to the same address
    server.kill()
    server.start()
    with server.client() as client:
        assert client.trace(trace_id)["status"] == "paused"
        client.continue_(trace_id, "auto")
        reader.join(60)
        assert reader.error is None
        assert reader.events[-1].type == "trace.completed"
        assert [event.raw for event in client.events(trace_id)] == [event.raw for event in reader.events]


def test_second_server_on_the_home_names_the_first(server: Server) -> None:
    assert server.process is not None
    done = serve(server.env(), "--port", "0")
    assert done.returncode == 2
    assert str(server.process.pid) in done.stderr
    assert server.url.rsplit(":", 1)[1] in done.stderr
    assert done.stderr.count("\n") == 1
    with server.client() as client:
        assert client.alive()


def test_taken_port_exits_with_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = serve(clean_environment(tmp_path), "--port", str(port))
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OMNI_R1_NO_SUCH_SETTING", "1"),
        ("OMNI_R1_PORT", "http"),
        ("OMNI_R1_HOST", "0.0.0.0"),
        ("OMNI_R1_DEVICE", "abacus"),
        ("OMNI_R1_QUANT", "int4"),
        ("OMNI_R1_CHECKPOINT", "no-such-checkpoint"),
    ],
)
def test_invalid_setting_exits_with_2(tmp_path: Path, name: str, value: str) -> None:
    done = serve(clean_environment(tmp_path) | {name: value})
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("omni-r1: ")


def test_unwritable_home_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = serve(clean_environment(tmp_path / "file"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_serve_ends_with_its_process_group(fresh_server: Server) -> None:
    """make forwards SIGTERM to a server that already got it: the second one must not cut the shutdown short."""
    fresh_server.home.mkdir(parents=True, exist_ok=True)
    fresh_server.environment["OMNI_R1_PAGES"] = "1"
    command = ["make", "-o", "setup", "serve", "PORT=0", "ARGS="]  # without the ARGS of `make test ARGS=…`
    env = {name: value for name, value in fresh_server.env().items() if not name.startswith("MAKE")}  # not make[1]
    with (
        fresh_server.log.open("a") as log,
        subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=log, text=True, process_group=0
        ) as made,
    ):
        assert made.stdout is not None
        first = made.stdout.readline()
        fresh_server.url = next(word for word in first.split() if word.startswith("http://"))
        fresh_server.process = made
        fresh_server.wait_ready()
        everyone = fresh_server.children()
        with fresh_server.client() as client:
            reader = Reader(fresh_server, start_many(client, 40)[-1])
            reader.wait_for("trace.queued")
        os.killpg(made.pid, signal.SIGTERM)
        made.wait(60)
    reader.join(60)
    assert reader.events[-1].type == "trace.failed"
    wait_until(lambda: not any(alive(process) for process in everyone), "the end of every process", 60)


def test_stopping_server_rejects_new_work(fresh_server: Server) -> None:
    server = fresh_server.start()
    rejected: list[OmniError] = []

    def knock() -> None:
        with server.client() as client:
            while True:
                try:
                    ask(client)
                except OmniError as error:
                    rejected.append(error)
                    return

    knocking = threading.Thread(target=knock, daemon=True)
    knocking.start()
    assert server.stop() == 0
    knocking.join(60)
    assert rejected
    assert not isinstance(rejected[0], NotReady) or rejected[0].status == 503


def serve(environment: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", "serve", *argv]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def clean_environment(home: Path) -> dict[str, str]:
    return Server(home).env()


def test_idle_server_sleeps(fresh_server: Server) -> None:
    """Counts wake-ups, which do not depend on the machine's speed: a polling loop has hundreds per second."""
    fresh_server.start()
    assert fresh_server.process is not None
    processes = [psutil.Process(fresh_server.process.pid), *fresh_server.children()]

    def wake_ups() -> int:
        return sum(process.num_ctx_switches().voluntary for process in processes)

    rates: list[float] = []

    def sleeps() -> bool:  # the start leaves work that takes a while on a busy machine
        before, since = wake_ups(), time.monotonic()
        time.sleep(2)
        rates.append((wake_ups() - before) / (time.monotonic() - since))
        return rates[-1] < 60

    wait_until(sleeps, f"fewer than 60 wake-ups a second: {rates}", 120)
    assert fresh_server.stop() == 0
