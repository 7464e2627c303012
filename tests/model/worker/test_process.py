"""The engine as a child process: it starts, dies, restarts and never outlives its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from model.engine.client import EngineProcess
from model.engine.commands import SetMode
from model.engine.link import HEADER, ParentLink
from model.engine.messages import Failed, Finished, GenerationRequest, Output, SamplingParams, Started
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.slow


def ask(name: str, tokens: int = 40) -> GenerationRequest:
    return GenerationRequest(
        name, "tiny", "Where is it?", sampling=SamplingParams(temperature=1.0, seed=3, max_new_tokens=tokens)
    )


async def collect(engine: EngineProcess, request: GenerationRequest) -> list[Output]:
    return [output async for output in engine.generate(request)]


@pytest.fixture
async def engine(tiny_checkpoint: Path) -> AsyncIterator[EngineProcess]:
    """A ready engine process."""
    engine = EngineProcess({"tiny": tiny_checkpoint}, device="cpu")
    await engine.start()
    try:
        await engine.wait_ready()
        yield engine
    finally:
        await engine.close()
    assert engine.pid is None


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_killed_child_fails_requests_and_is_replaced(engine: EngineProcess) -> None:
    before = await collect(engine, ask("a"))
    first = engine.pid
    assert first is not None
    outputs = []
    async for output in engine.generate(ask("b", tokens=400)):
        outputs.append(output)
        if isinstance(output, Started):
            os.kill(first, signal.SIGKILL)
    assert isinstance(outputs[-1], Failed)
    assert outputs[-1].code == "engine_died"
    assert "-9" in outputs[-1].detail
    assert engine.status().phase == "starting"
    assert (await engine.wait_ready()).phase == "ready"
    assert engine.pid not in (None, first)
    assert await collect(engine, ask("c")) == before
    assert not is_alive(first)


async def test_ctrl_c_does_not_reach_the_child(engine: EngineProcess) -> None:
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert isinstance((await collect(engine, ask("a")))[-1], Finished)
    assert engine.pid == pid


@pytest.mark.parametrize("unread", [0, 20_000_000])
async def test_close_kills_a_hanging_child(engine: EngineProcess, unread: int) -> None:
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    engine._send(SetMode("x" * unread, step_mode=True))  # exceeds the socket's buffer: a flush would never end
    await engine.close()
    assert not is_alive(pid)


async def test_close_ends_live_requests_and_child(engine: EngineProcess) -> None:
    stream = engine.generate(ask("a", tokens=480))
    assert isinstance(await anext(stream), Started)
    pid = engine.pid
    assert pid is not None
    await engine.close()
    outputs = [output async for output in stream]
    assert isinstance(outputs[-1], Failed)
    assert outputs[-1].code == "interrupted"
    assert not is_alive(pid)
    assert engine.status().phase == "stopping"


def test_killed_parent_leaves_no_child(tiny_checkpoint: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from model.engine.client import EngineProcess\n"
        "async def main():\n"
        "    engine = EngineProcess({'tiny': sys.argv[1]}, device='cpu')\n"
        "    await engine.start()\n"
        "    await engine.wait_ready()\n"
        "    print(engine.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tiny_checkpoint)], stdout=subprocess.PIPE, cwd=root, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        watch = os.pidfd_open(child)
        try:
            parent.kill()
            parent.wait()
            import select

            assert select.select([watch], [], [], PATIENCE_S)[0], "the child outlived its parent"
        finally:
            os.close(watch)


async def test_missing_device_is_named(tiny_checkpoint: Path) -> None:
    engine = EngineProcess({"tiny": tiny_checkpoint}, device="tpu")
    await engine.start()
    status = await engine.wait_ready()
    assert status.phase == "failed"
    assert "OMNI_R1_DEVICE=tpu" in status.detail
    (output,) = await collect(engine, ask("a"))
    assert isinstance(output, Failed)
    assert output.code == "not_ready"
    await engine.close()


async def test_child_dying_at_start_is_given_up(tiny_checkpoint: Path) -> None:
    command = (sys.executable, "-c", "import sys; sys.exit(3)")
    engine = EngineProcess({"tiny": tiny_checkpoint}, command=command)
    await engine.start()
    status = await engine.wait_ready()
    assert status.phase == "failed"
    assert "exit code 3" in status.detail
    await engine.close()


def test_serving_imports_no_transformers() -> None:
    code = "import sys, model.worker.child; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0


@pytest.mark.parametrize("sent", [b"", HEADER.pack(9)[:2], HEADER.pack(9) + b"half"])
@pytest.mark.parametrize("unread", [False, True])
def test_every_end_of_the_parent_is_noticed(sent: bytes, unread: bool) -> None:
    """A parent killed with unread messages resets the connection instead of closing it."""
    ours, theirs = socket.socketpair()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        link = ParentLink(theirs.detach())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    ended = threading.Event()
    link.receive(lambda message: None, ended.set)
    if unread:
        link.send("a message")
    ours.sendall(sent)
    ours.close()
    assert ended.wait(PATIENCE_S)
    link._socket.close()
