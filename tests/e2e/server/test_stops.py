"""SIGTERM ends a real server whatever hangs at that moment; the next start cleans up."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.real_server import ROOT, SERVE, Server, runs, wait_until
from tests.e2e.server.test_server import ask
from tests.e2e.server.test_server_life import alive, start_many
from tests.postgres import Cluster

pytestmark = pytest.mark.timeout(600)
ENDED_S = 60.0  # for a busy machine; app/exit_watch.py ends the process after 8 s
PESFT = {
    "method": "pesft",
    "base_checkpoint": "nano-base",
    "data": {"source": "unitasks", "num_samples": 64},
    "hyperparameters": {"steps": 10_000},
}

State = Callable[[Server, ExitStack], None]


def in_background(work: Callable[[], Any]) -> None:
    """A client call that may never be answered."""

    def run() -> None:
        with contextlib.suppress(Exception):
            work()

    threading.Thread(target=run, daemon=True).start()


def post(server: Server, path: str, body: dict[str, Any]) -> None:
    in_background(lambda: httpx.post(server.url + path, json=body, timeout=600))


@contextlib.contextmanager
def silent_hub(dripping: bool = False) -> Iterator[tuple[str, list[socket.socket]]]:
    """A hub that accepts connections and never answers, or sends one byte at a time; yields its connections, too."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(listener.accept()[0])
                    if dripping:
                        in_background(lambda: drip(taken[-1]))

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", taken
        listener.shutdown(socket.SHUT_RDWR)
    for connection in taken:
        connection.close()


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.2)


def connect(server: Server, count: int, data: bytes, stack: ExitStack) -> list[socket.socket]:
    """That many waiting connections that have sent `data`."""
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    connections = [stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(count)]
    for connection in connections:
        with contextlib.suppress(OSError):  # evicted
            connection.sendall(data)
    return connections


def engine_of(server: Server) -> psutil.Process:
    return next(child for child in server.children() if runs(child, "model.worker.child"))


def freeze(process: psutil.Process, stack: ExitStack) -> None:
    """Stop a process and its children until the test ends."""
    for one in [process, *process.children(recursive=True)]:
        one.suspend()
        stack.callback(thaw, one)


def thaw(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.resume()


# ---- states


def a_silent_hub(server: Server, stack: ExitStack) -> None:
    url, taken = stack.enter_context(silent_hub())
    server.environment["HF_ENDPOINT"] = url
    server.start()
    for number in range(6):
        post(server, "/v1/checkpoints", {"source": f"nobody/x{number}"})
    wait_until(lambda: bool(taken), "a call to the hub", 120)


def a_silent_hub_at_the_start(server: Server, stack: ExitStack) -> None:
    url, taken = stack.enter_context(silent_hub())
    server.environment |= {"HF_ENDPOINT": url, "OMNI_R1_CHECKPOINT": "nobody/x"}
    server.start(ready=False)
    wait_until(lambda: bool(taken), "a call to the hub", 120)


def an_activation(server: Server, stack: ExitStack) -> None:
    server.start()
    freeze(engine_of(server), stack)
    post(server, "/v1/checkpoints/nano-base/activate", {})
    with server.client() as client:
        wait_until(lambda: "is being validated" in client.readiness()["detail"], "an activation", 120)


def waiting_connections(server: Server, stack: ExitStack) -> None:
    """Half a body, half a head, and nothing at all."""
    server.start()
    head = b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9000\r\n\r\nhalf"
    connect(server, 50, head, stack)
    connect(server, 50, b"GET /livez HTTP/1.1\r\nHost: loc", stack)
    connect(server, 400, b"", stack)


def readers_that_do_not_read(server: Server, stack: ExitStack) -> None:
    server.start()
    with server.client() as client:
        ids = start_many(client, 20)
    for trace_id in ids:
        connect(server, 2, f"GET /v1/traces/{trace_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), stack)


def a_job_that_ignores_it(server: Server, stack: ExitStack) -> None:
    server.start()
    with server.client() as client:
        job = client.create_job(PESFT)
        wait_until(lambda: client.job(job["id"])["status"] == "running", "a running job", 120)
        wait_until(lambda: bool(workers(server)), "its worker", 120)
    freeze(workers(server)[0], stack)


def workers(server: Server) -> list[psutil.Process]:
    return [child for child in server.children() if runs(child, "training.jobs.worker")]


def an_engine_that_hangs(server: Server, stack: ExitStack) -> None:
    server.start()
    with server.client() as client:
        start_many(client, 20)
        freeze(engine_of(server), stack)


def gradio_is_imported(server: Server, stack: ExitStack) -> None:
    del server.environment["OMNI_R1_PAGES"]
    server.start(ready=False)


STATES: list[State] = [
    a_silent_hub,
    a_silent_hub_at_the_start,
    an_activation,
    waiting_connections,
    readers_that_do_not_read,
    a_job_that_ignores_it,
    an_engine_that_hangs,
    gradio_is_imported,
]


WITH_WORK = (readers_that_do_not_read, a_job_that_ignores_it, an_engine_that_hangs)  # the next start has to clean up


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_sigterm_ends_the_server_in_every_state(fresh_server: Server, state: State) -> None:
    server = fresh_server
    with ExitStack() as stack:
        state(server, stack)
        left = [child for child in server.children() if not runs(child, "training.jobs.worker")]
        assert server.stop(timeout_s=ENDED_S) == 0, server.tail()
        wait_until(lambda: not any(alive(child) for child in left), "the end of its children", ENDED_S)
    if state not in WITH_WORK:
        return
    server.start()
    with server.client() as client:
        assert not [t for t in client.traces(limit=100)["data"] if t["status"] in ("queued", "running")]
        wait_until(lambda: all(j["status"] != "running" for j in client.jobs()["data"]), "an honest job", 180)
        assert client.trace(ask(client)["id"])["id"]


def test_sigterm_ends_a_server_with_a_hanging_database(fresh_server: Server) -> None:
    cluster = Cluster().start()
    server = fresh_server
    try:
        with ExitStack() as stack:
            server.environment["OMNI_R1_DATABASE_URL"] = cluster.new()
            server.start()
            with server.client() as client:
                ids = start_many(client, 10)
            freeze(psutil.Process(cluster.pid), stack)
            for trace_id in ids * 3:
                in_background(functools.partial(httpx.get, f"{server.url}/v1/traces/{trace_id}", timeout=60))
            wait_until(lambda: httpx.get(f"{server.url}/readyz", timeout=60).status_code == 503, "an honest readyz", 60)
            assert httpx.get(f"{server.url}/livez", timeout=60).status_code == 200
            assert server.stop(timeout_s=ENDED_S) == 0, server.tail()
        server.start()
        with server.client() as client:
            assert not [t for t in client.traces(limit=100)["data"] if t["status"] in ("queued", "running")]
        assert server.stop() == 0
    finally:
        server.kill()
        cluster.remove()


def test_sigterm_during_start_ends_the_server(tmp_path: Path) -> None:
    server = Server(tmp_path / "home")
    command = server.command()
    assert command[2:4] == list(SERVE)
    process = subprocess.Popen(command, env=server.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: alive(psutil.Process(process.pid)), "the process", 30)
    while not (tmp_path / "home" / "lock").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=ENDED_S)
    assert process.returncode == 0, error
    assert b"Traceback" not in error


def test_sigterm_ends_a_server_with_an_unread_log(tmp_path: Path) -> None:
    server = Server(tmp_path / "home", {"OMNI_R1_LOG_LEVEL": "debug"})
    unread, log = os.pipe()
    os.set_blocking(log, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(log, b"x" * 4096)
    os.set_blocking(log, True)
    process = subprocess.Popen(server.command(), cwd=ROOT, env=server.env(), stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    try:
        assert b"http://" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(ENDED_S) == 0
    finally:
        process.kill()
        process.stdout.close()
        os.close(unread)
        os.close(log)


def test_second_signal_ends_the_server_immediately(fresh_server: Server) -> None:
    with ExitStack() as stack:
        an_engine_that_hangs(fresh_server, stack)
        left = fresh_server.children()
        assert fresh_server.process is not None
        fresh_server.process.send_signal(signal.SIGTERM)
        time.sleep(1.0)  # a second request, not the first one forwarded by make
        assert fresh_server.stop(signal.SIGTERM, ENDED_S) in (0, 128 + signal.SIGTERM)
        wait_until(lambda: not any(alive(child) for child in left), "the end of its children", ENDED_S)


def test_silent_hub_blocks_nothing(fresh_server: Server) -> None:
    with silent_hub(dripping=True) as (url, taken), ExitStack() as stack:
        fresh_server.environment |= {
            "HF_ENDPOINT": url,
            "OMNI_R1_HUB_TIMEOUT_S": "10",
            "HF_HOME": str(fresh_server.home / "hub"),
        }
        fresh_server.start()
        answers: list[httpx.Response] = []

        def register(number: int) -> None:
            body = {"source": f"nobody/x{number}"}
            answers.append(httpx.post(f"{fresh_server.url}/v1/checkpoints", json=body, timeout=600))

        threads = [threading.Thread(target=register, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: bool(taken), "a call to the hub", 120)
        with fresh_server.client() as client:
            assert client.readiness()["phase"] == "ready"
            assert list(client.events(ask(client)["id"]))[-1].type == "trace.completed"
        for thread in threads:
            thread.join(300)
        assert {answer.status_code for answer in answers} == {504}
        assert all(answer.json()["code"] == "hub_unavailable" for answer in answers)
        assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
        stack.callback(fresh_server.stop)
