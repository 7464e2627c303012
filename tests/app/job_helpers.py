"""Shared parts of the job tests: a spec, minimal workers, a recording registry, shorthands."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.contract.problems import Problem
from tests.app.conftest import Server, Sse
from tests.patience import PATIENCE_S

FAKE_WORKER = Path(__file__).parents[1] / "fake_worker.py"
SPEC = {
    "method": "pesft",
    "base_checkpoint": "nano-omni-r1",
    "data": {"source": "unitasks", "num_samples": 64},
    "hyperparameters": {"steps": 4},
    "seed": 1,
}


def worker(what: str) -> tuple[str, ...]:
    return (sys.executable, "-S", str(FAKE_WORKER), what)


@dataclass
class FakeCheckpoints:
    """Records calls to the registry methods that jobs use."""

    registered: list[dict[str, Any]] = field(default_factory=list)
    activated: list[str] = field(default_factory=list)
    refusal: Problem | None = None
    weight_version: int = 7

    def register_job_checkpoint(self, **what: Any) -> None:
        self.registered.append(what)

    async def activate(self, name: str) -> FakeCheckpoints:
        if self.refusal is not None:
            raise self.refusal
        self.activated.append(name)
        return self


async def post(server: Server, spec: Mapping[str, Any] = SPEC, **more: Any) -> dict[str, Any]:
    answer = await server.client.post("/v1/jobs", json={**spec, **more})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def get(server: Server, job_id: str) -> dict[str, Any]:
    return dict((await server.client.get(f"/v1/jobs/{job_id}")).json())


async def events(server: Server, job_id: str, until: Callable[[Sse], bool] | None = None, **more: Any) -> list[Sse]:
    async with asyncio.timeout(PATIENCE_S):
        return await server.stream(job_id, until=until, kind="jobs", **more)


def of_type(type_: str) -> Callable[[Sse], bool]:
    return lambda event: event.type == type_


def statuses(found: list[Sse]) -> list[str]:
    return [event.data["status"] for event in found if event.type == "job.status"]


def code(answer: httpx.Response) -> str:
    return str(answer.json()["code"])
