"""What goes wrong with Ray, in one clause each, and whether there is a cluster at an address. Imports no Ray."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

STARTING = "its actor is starting"

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FACT = re.compile(r"\w+: \S+")  # `class_name: EngineActor`, `pid: 7`
_EXIT = re.compile(r"Worker exit type: (\w+)")
_UNEXPECTED = "The actor died unexpectedly before finishing this task."


def reach(address: str, timeout_s: float) -> None:
    """Return if something listens at `RAY_ADDRESS`; Ray itself would try for minutes.

    Raises:
        ValueError: it is no host:port.
        OSError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError("it has to be host:port, since Ray's client is not used")
    socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()


def why_refused(error: BaseException) -> str:
    """Why Ray does not connect, or start."""
    chain: BaseException | None = error
    while chain is not None:
        if "AuthenticationError" in f"{type(chain).__name__} {chain}":
            return (
                "it does not accept this server's token: set RAY_AUTH_MODE=token, "
                "and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
            )
        chain = chain.__cause__
    message = (isinstance(error, OSError) and error.strerror) or str(error)
    if message.startswith("Failed to connect to Ray cluster"):
        return "what listens there does not answer as the head of a Ray cluster does"
    return next(iter(_lines(message)), type(error).__name__)


def want_of_room(needs: Mapping[str, float], free: Mapping[str, float]) -> str:
    """What an actor that has not started waits for, given what it needs and what the cluster has free of each kind."""
    short = [
        f"{need:g} {kind} ({free.get(kind, 0):g} free)" for kind, need in needs.items() if free.get(kind, 0) < need
    ]
    return f"it waits for room in the cluster: it needs {' and '.join(short)}" if short else STARTING


def why_died(message: str) -> str:
    """Why an actor has ended, from the many lines of Ray's message."""
    lines = _lines(message)
    if any(line.startswith(("ray::", "Traceback ")) or "creation task" in line for line in lines):
        return f"the actor failed: {lines[-1]}"
    said = [line for line in lines if line != _UNEXPECTED and not _FACT.fullmatch(line)]
    if not said:
        return "the actor died unexpectedly"
    clause = re.split(r"\.(?:\s|$)", said[0])[0]
    how = _EXIT.search(message)
    return clause[0].lower() + clause[1:] + (f" ({how[1].lower().replace('_', ' ')})" if how else "")


def _lines(text: str) -> list[str]:
    return [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]
