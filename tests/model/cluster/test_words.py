"""What is said when Ray does not start, or an actor ends."""

from __future__ import annotations

import socket

import pytest

from model.cluster.words import STARTING, reach, want_of_room, why_died, why_refused

KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: EngineActor
\tactor_id: 5b3e1c8f01000000
\tpid: 4711
\tnamespace: 0b6f
\tip: 10.0.0.5
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed.
"""
NODE = """The actor died unexpectedly before finishing this task.
\tclass_name: EngineActor
The actor died because its node has died. Node Id: 8900f1fa
\tthe actor's node was terminated expectedly: received SIGTERM"""
BROKEN = """The actor died because of an error raised in its creation task, \x1b[36mray::EngineActor.__init__()\x1b[39m
  File "actor.py", line 3, in __init__
    raise RuntimeError("no device")
RuntimeError: no device"""
FAILED = """\x1b[36mray::EngineActor.reports()\x1b[39m (pid=1, ip=10.0.0.5)
  File "actor.py", line 3, in reports
ValueError: odd"""


@pytest.mark.parametrize(
    ("message", "clause"),
    [
        (KILLED, "the actor is dead because its worker process has died (system error)"),
        (KILLED.replace("SYSTEM_ERROR", "NODE_OUT_OF_MEMORY"), "process has died (node out of memory)"),
        (NODE, "the actor died because its node has died"),
        (BROKEN, "the actor failed: RuntimeError: no device"),
        (FAILED, "the actor failed: ValueError: odd"),
        ("The actor died unexpectedly before finishing this task.", "the actor died unexpectedly"),
        ("", "the actor died unexpectedly"),
    ],
)
def test_death_is_one_clause_with_its_cause(message: str, clause: str) -> None:
    found = why_died(message)
    assert found.endswith(clause)
    assert "\n" not in found
    assert found[0].islower()
    assert not found.endswith(".")


def test_waiting_actor_says_what_is_not_free() -> None:
    free = {"CPU": 0.5, "memory": 7.0}
    found = want_of_room({"CPU": 1, "GPU": 0.25}, free)
    assert found == "it waits for room in the cluster: it needs 1 CPU (0.5 free) and 0.25 GPU (0 free)"
    assert want_of_room({"CPU": 0.5, "GPU": 0}, free) == STARTING


def test_refusal_names_the_token_wherever_ray_does() -> None:
    error = ConnectionError("Failed to connect to Ray cluster at 10.0.0.5:6379")
    assert "does not answer" in why_refused(error)
    error.__cause__ = RuntimeError("Failed to connect: ray.exceptions.AuthenticationError: wrong token.\nMore")
    assert "RAY_AUTH_MODE=token" in why_refused(error)
    assert why_refused(ConnectionError("Failed to connect\nMore")) == "Failed to connect"
    assert why_refused(ConnectionError()) == "ConnectionError"


@pytest.mark.parametrize(
    "address", ["ray://10.0.0.5:10001", "10.0.0.5", ":6379", "10.0.0.5:port", "10.0.0.5:0", "10.0.0.5:99999"]
)
def test_address_is_host_and_port(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        reach(address, 1)


def test_address_is_reached_if_something_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        reach(address, 1)
    with pytest.raises(OSError, match="refused") as refused:
        reach(address, 1)
    assert why_refused(refused.value) == "Connection refused"
