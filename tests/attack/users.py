"""People at one or two servers on one database: they ask, branch, pause, cancel and read, whatever the servers suffer.

A call is repeated with its idempotency key until it is answered; readers resume by themselves. What each reader saw is
kept, for a comparison with the stored log.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from app.client import Client, Conflict, NotFound, OmniError, QueueFull, ServerFailed, ServerUnreachable
from tests.attack.report import Site
from tests.patience import PATIENCE_S
from training.world.world import SLICES

T = TypeVar("T")
USERS = 12
RETRY_S = 0.2


@dataclass
class Seen:
    """What the readers of a round saw: the log of each trace or group, once per reader."""

    logs: list[tuple[str, list[str]]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    traces: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def made(self, count: int) -> None:
        with self._lock:
            self.traces += count


def patiently(call: Callable[[], T]) -> T:
    """The result of a call, repeated while the server is away, busy or without its database."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except (ServerUnreachable, ServerFailed, QueueFull):
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)


class Users:
    """A crowd that makes a number of traces and reads each to its end."""

    def __init__(self, site: Site, rng: random.Random, wanted: int, seen: Seen) -> None:
        self._site, self._wanted, self._seen = site, wanted, seen
        seeds = [rng.randrange(2**31) for _ in range(USERS)]
        self._threads = [threading.Thread(target=self._live, args=(random.Random(s),), daemon=True) for s in seeds]

    def begin(self) -> None:
        """Start them."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Wait until each has read the last trace to its end; one that waits in vain is a fault."""
        deadline = time.monotonic() + 2 * PATIENCE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._seen.faults.append("a user waits in vain")

    def _live(self, rng: random.Random) -> None:
        while self._seen.traces < self._wanted:
            home, other = rng.choice(self._site.servers), rng.choice(self._site.servers)
            with home.client() as client, other.client() as elsewhere:
                try:
                    self._one(rng, client, elsewhere)
                except OmniError as error:
                    self._seen.faults.append(f"a user met {type(error).__name__}: {error}")

    def _one(self, rng: random.Random, client: Client, elsewhere: Client) -> None:
        """A question and what follows it; read on any server, at least half of the time on the one that runs it."""
        what = rng.choice(("ask", "ask", "ask", "sample", "step", "cancel", "branch"))
        trace = self._ask(rng, client, n=2 if what == "sample" else 1, mode="step" if what == "step" else "auto")
        trace_id = trace["id"]
        if what == "step":
            self._step(client, trace_id)
        elif what == "cancel":
            time.sleep(rng.uniform(0, 1))
            patiently(lambda: client.cancel(trace_id))
        if what == "sample":
            group = trace["group_id"]
            self._read(group, lambda: elsewhere.group_events(group, give_up_s=PATIENCE_S))
            return
        self._read(trace_id, lambda: elsewhere.events(trace_id, give_up_s=PATIENCE_S))
        if what == "branch":
            self._branch(rng, client, elsewhere, trace_id)

    def _ask(self, rng: random.Random, client: Client, *, n: int, mode: Any) -> Any:
        task = patiently(lambda: client.task(slice=rng.choice(SLICES), seed=rng.randrange(10**9, 2 * 10**9)))
        sampling: Any = {"temperature": 1.0, "seed": rng.randrange(2**31)}
        partial, key = rng.choice((0, 8, 32)), uuid.UUID(int=rng.getrandbits(128)).hex
        self._seen.made(n)
        return patiently(
            lambda: client.create_trace(
                task["question"],
                [task["image_id"]],
                mode=mode,
                sampling=sampling,
                partial_images=partial,
                background=True,
                n=n,
                idempotency_key=key,
            )
        )

    def _step(self, client: Client, trace_id: str) -> None:
        """Step until it ends."""
        while patiently(lambda: client.trace(trace_id))["status"] in ("queued", "running", "paused"):
            try:
                patiently(lambda: client.continue_(trace_id))
            except Conflict:
                time.sleep(RETRY_S)  # it runs, or has ended

    def _branch(self, rng: random.Random, client: Client, elsewhere: Client, trace_id: str) -> None:
        steps = patiently(lambda: client.trace(trace_id))["steps"]
        if not steps:
            return
        after, key = rng.randrange(len(steps)), uuid.UUID(int=rng.getrandbits(128)).hex
        try:
            made = patiently(lambda: client.branch(trace_id, after, background=True, idempotency_key=key))
        except Conflict:
            return  # an interrupted trace has no tokens of its last step
        self._seen.made(len(made))
        for branch in made:
            self._read(branch["id"], lambda: elsewhere.events(branch["id"], give_up_s=PATIENCE_S))  # noqa: B023

    def _read(self, log_id: str, events: Callable[[], Any]) -> None:
        try:
            self._seen.logs.append((log_id, [event.raw for event in events()]))
        except NotFound:
            self._seen.faults.append(f"{log_id} is unknown to a server")
