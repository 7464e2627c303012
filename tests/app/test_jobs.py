"""Training jobs over HTTP with ten-line workers: their life, their events, cancel, resume, delete, the queue."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.errors import Problem
from tests.app.conftest import Server, Sse, both_databases

FAKE_WORKER = Path(__file__).parents[1] / "fake_worker.py"
SPEC = {
    "method": "pesft",
    "base_checkpoint": "nano-omni-r1",
    "data": {"source": "unitasks", "num_samples": 64},
    "hyperparameters": {"steps": 4},
    "seed": 1,
}
TERMINAL = {"succeeded", "failed", "cancelled", "interrupted"}


def worker(what: str) -> tuple[str, ...]:
    return (sys.executable, "-S", str(FAKE_WORKER), what)


@dataclass
class FakeCheckpoints:
    """The registry's part that jobs use, recorded."""

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
    async with asyncio.timeout(30):
        return await server.stream(job_id, until=until, kind="jobs", **more)


def of_type(type_: str) -> Callable[[Sse], bool]:
    return lambda event: event.type == type_


def statuses(found: list[Sse]) -> list[str]:
    return [event.data["status"] for event in found if event.type == "job.status"]


def code(answer: httpx.Response) -> str:
    return str(answer.json()["code"])


@both_databases
def test_a_job_runs_and_tells_what_it_does(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        registry = server.services.jobs._checkpoints = FakeCheckpoints()
        answer = await server.client.post("/v1/jobs", json=SPEC)
        assert answer.status_code == 202
        job = answer.json()
        assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
        assert job["status"] == "queued"
        assert job["spec"]["hyperparameters"]["perception_weight"] == 1.0  # every default is resolved
        found = await events(server, job["id"])
        assert [event.id for event in found] == list(range(1, len(found) + 1))
        assert statuses(found) == ["queued", "running", "succeeded"]
        assert found[-1].type == "job.status"
        kinds = {event.type for event in found}
        assert kinds == {"job.status", "progress", "metrics", "sample", "checkpoint"}
        done = await get(server, job["id"])
        assert done["status"] == "succeeded"
        assert done["progress"] == {"stage": "pesft", "step": 4, "total": 4, "eta_s": 1.5}
        assert done["metrics"] == {"loss/ce": 0.5, "loss/text": None}  # NaN is no JSON
        assert done["result"]["loss/ce"] == 0.5
        assert done["started_at"] <= done["finished_at"]
        assert done["error"] is None
        (made,) = registry.registered
        assert made["name"].endswith("-step-4")
        assert made["name"].startswith("nano-omni-r1-pesft-")
        assert (made["job_id"], made["base"], made["step"]) == (job["id"], "nano-omni-r1", 4)
        assert made["folder"].is_dir()
        assert registry.activated == []

    with_server(scenario, job_command=worker("succeed"))


def test_a_checkpoint_is_registered_before_anybody_hears_of_it(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        registry = server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        await events(server, job["id"], until=of_type("checkpoint"))
        assert len(registry.registered) == 1

    with_server(scenario, job_command=worker("succeed"))


def test_the_worker_finds_everything_that_it_needs_to_know_in_its_folder(
    with_server: Callable[..., Any], package: Path
) -> None:
    async def scenario(server: Server) -> None:
        server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server, output_name="mine")
        await events(server, job["id"])
        told = json.loads((server.home / "jobs" / job["id"] / "job.json").read_text())
        assert told["base"] == {"name": "nano-omni-r1", "folder": str(package / "nano-omni-r1")}
        assert told["checkpoints"]["nano-omni-r1"] == str(package / "nano-omni-r1")
        assert told["output_prefix"] == "mine"
        assert told["spec"] == job["spec"]
        assert told["provenance"]["torch"]
        assert told["provenance"]["python"]

    with_server(scenario, job_command=worker("succeed"))


def test_pictures_of_a_sample_are_served_and_nothing_else_of_the_folder(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        found = await events(server, job["id"])
        sample = next(event.data for event in found if event.type == "sample")
        url = f"/v1/jobs/{job['id']}/files/samples/a-1.png"
        assert sample["question_image"] == url
        assert [step["image"] for step in sample["steps"]] == [url, None]
        picture = await server.client.get(url)
        assert picture.content == b"\x89PNG"
        assert picture.headers["content-type"] == "image/png"
        log = await server.client.get(f"/v1/jobs/{job['id']}/files/log.txt")
        assert "the worker says hello" in log.text
        for name in (
            "runs/pesft/state.pt",
            "samples",
            "..%2F..%2Fomni-r1.db",
            "%2e%2e/../server-id",
            ".hidden.txt",
            "a%00b",
        ):
            answer = await server.client.get(f"/v1/jobs/{job['id']}/files/{name}")
            assert answer.status_code == 404, name
        outside = await server.client.get("/v1/jobs/../files/server-id.txt")
        assert outside.status_code == 404

    with_server(scenario, job_command=worker("succeed"))


def test_a_reader_loses_and_repeats_nothing_wherever_it_begins(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        live = await events(server, job["id"])
        for after in range(len(live)):
            again = await events(server, job["id"], after=after)
            assert b"".join(event.raw for event in again) == b"".join(event.raw for event in live[after:])
        url = f"/v1/jobs/{job['id']}/events"
        past = await server.client.get(url, params={"after": str(len(live))})
        assert past.status_code == 204
        header = await server.client.get(url, params={"after": "0"}, headers={"Last-Event-ID": str(len(live))})
        assert header.status_code == 204
        assert (await server.client.get(url, params={"after": "-1"})).status_code == 400
        assert (await server.client.get("/v1/jobs/nobody/events")).status_code == 404

    with_server(scenario, job_command=worker("succeed"))


def test_activate_puts_the_result_to_work_at_the_end(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        registry = server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server, activate=True)
        found = await events(server, job["id"])
        name = registry.registered[0]["name"]
        assert registry.activated == [name]
        assert found[-1].data["result"]["activated"] == {"checkpoint": name, "weight_version": 7}

    with_server(scenario, job_command=worker("succeed"))


def test_a_failed_activation_fails_the_job_and_leaves_its_checkpoints(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        refusal = Problem("checkpoint_invalid", "NaN in model.norm.weight")
        registry = server.services.jobs._checkpoints = FakeCheckpoints(refusal=refusal)
        job = await post(server, activate=True)
        await events(server, job["id"])
        done = await get(server, job["id"])
        assert (done["status"], done["error"]["code"]) == ("failed", "activation_failed")
        assert "NaN in model.norm.weight" in done["error"]["detail"]
        assert registry.registered[0]["folder"].is_dir()

    with_server(scenario, job_command=worker("succeed"))


def test_a_worker_that_fails_says_why(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        job = await post(server)
        found = await events(server, job["id"])
        assert statuses(found) == ["queued", "running", "failed"]
        error = found[-1].data["error"]
        assert (error["code"], error["detail"]) == ("loss_not_finite", "NaN at step 3")
        assert error["log_tail"] == ["the worker says hello"]
        assert [event.data["line"] for event in found if event.type == "log"] == ["something is odd"]
        again = await server.client.post(f"/v1/jobs/{job['id']}/resume")
        assert (again.status_code, code(again)) == (409, "not_resumable")  # it saved nothing

    with_server(scenario, job_command=worker("fail"))


def test_a_worker_that_crashes_leaves_a_failed_job_with_its_last_lines(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        job = await post(server)
        found = await events(server, job["id"])
        assert next(event.data["values"]["loss/ce"] for event in found if event.type == "metrics") == 2.0
        error = found[-1].data["error"]
        assert error["code"] == "worker_died"
        assert "exit code 7" in error["detail"]
        assert error["log_tail"] == ["the worker says hello", "boom[31m"]  # without the escape character

    with_server(scenario, job_command=worker("crash"))


def test_a_worker_that_cannot_be_started_is_a_failed_job(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        job = await post(server)
        found = await events(server, job["id"])
        assert found[-1].data["error"]["code"] == "not_started"

    with_server(scenario, job_command=("/nowhere/python",))


@both_databases
def test_cancel_stops_at_a_step_boundary_and_resume_goes_on(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        registry = server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        url = f"/v1/jobs/{job['id']}"
        await events(server, job["id"], until=of_type("metrics"))
        assert code(await server.client.post(f"{url}/resume")) == "not_resumable"
        assert code(await server.client.delete(url)) == "job_live"
        cancelled = await server.client.post(f"{url}/cancel")
        assert cancelled.status_code == 200
        assert cancelled.json()["cancel_requested"] is True
        found = await events(server, job["id"])
        assert statuses(found) == ["queued", "running", "cancelled"]
        assert [made["step"] for made in registry.registered] == [2]
        again = (await server.client.post(f"{url}/cancel")).json()
        assert (again["status"], again["cancel_requested"]) == ("cancelled", False)

        resumed = await server.client.post(f"{url}/resume")
        assert resumed.status_code == 202
        assert resumed.json()["status"] == "queued"
        whole = await events(server, job["id"])
        assert statuses(whole) == ["queued", "running", "cancelled", "queued", "running", "succeeded"]
        assert [event.id for event in whole] == list(range(1, len(whole) + 1))
        assert whole[: len(found)] == found
        steps = [event.data["step"] for event in whole if event.type == "metrics"]
        assert steps == [1, 3, 4]
        done = await get(server, job["id"])
        assert (done["attempt"], done["error"]) == (2, None)

    with_server(scenario, job_command=worker("obey"))


def test_a_worker_that_ignores_the_request_is_killed_when_patience_ends(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        registry = server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        await events(server, job["id"], until=of_type("checkpoint"))
        await server.client.post(f"/v1/jobs/{job['id']}/cancel")
        found = await events(server, job["id"])
        assert statuses(found)[-1] == "cancelled"
        assert found[-1].data["error"]["code"] == "killed"
        assert len(registry.registered) == 1  # what it had saved stays

    with_server(scenario, job_command=worker("stubborn"), job_patience_s=0.3)


@both_databases
def test_jobs_wait_for_their_turn_and_an_exclusive_one_runs_alone(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        server.services.jobs._checkpoints = FakeCheckpoints()

        async def status(job: dict[str, Any]) -> str:
            return str((await get(server, job["id"]))["status"])

        def go(job: dict[str, Any]) -> None:
            (server.home / "jobs" / job["id"] / "go").touch()

        shared = [await post(server) for _ in range(2)]
        for job in shared:
            await events(server, job["id"], until=of_type("metrics"))
        alone = await post(server, gpu="exclusive")
        behind = await post(server)
        third = await post(server)
        go(shared[0])
        await events(server, shared[0]["id"])
        # A place is free, but the exclusive one needs both, and nobody overtakes it.
        assert [await status(job) for job in (shared[1], alone, behind)] == ["running", "queued", "queued"]
        go(shared[1])
        await events(server, alone["id"], until=of_type("metrics"))
        assert [await status(job) for job in (shared[1], alone, behind)] == ["succeeded", "running", "queued"]
        gone = await server.client.post(f"/v1/jobs/{third['id']}/cancel")
        assert gone.json()["status"] == "cancelled"  # one that waits is cancelled at once
        assert statuses(await events(server, third["id"])) == ["queued", "cancelled"]
        go(alone)
        await events(server, behind["id"], until=of_type("metrics"))
        go(behind)
        assert statuses(await events(server, behind["id"]))[-1] == "succeeded"

    with_server(scenario, job_command=worker("wait"), max_jobs=2)


@both_databases
def test_deleting_a_job_leaves_its_checkpoints(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        registry = server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        await events(server, job["id"])
        assert (await server.client.delete(f"/v1/jobs/{job['id']}")).status_code == 204
        for path in ("", "/events", "/metrics", "/files/samples/a-1.png"):
            assert (await server.client.get(f"/v1/jobs/{job['id']}{path}")).status_code == 404, path
        assert [path.name for path in (server.home / "jobs" / job["id"]).iterdir()] == ["checkpoints"]
        assert registry.registered[0]["folder"].is_dir()
        assert code(await server.client.delete(f"/v1/jobs/{job['id']}")) == "job_not_found"

    with_server(scenario, job_command=worker("succeed"))


@both_databases
def test_the_same_key_and_body_start_one_job(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        server.services.jobs._checkpoints = FakeCheckpoints()
        headers = {"Idempotency-Key": "once"}
        first = await server.client.post("/v1/jobs", json=SPEC, headers=headers)
        second = await server.client.post("/v1/jobs", json=SPEC, headers=headers)
        assert (second.status_code, second.json()) == (202, first.json())
        assert second.headers["idempotent-replayed"] == "true"
        other = await server.client.post("/v1/jobs", json={**SPEC, "seed": 2}, headers=headers)
        assert (other.status_code, code(other)) == (422, "idempotency_mismatch")
        assert len((await server.client.get("/v1/jobs")).json()["data"]) == 1
        await events(server, first.json()["id"])

    with_server(scenario, job_command=worker("succeed"))


@both_databases
def test_lists_are_paged_newest_first_and_filtered(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        made = [(await post(server, output_name=f"run-{k}"))["id"] for k in range(3)]
        for job_id in made:
            await events(server, job_id)
        first = (await server.client.get("/v1/jobs", params={"limit": 2})).json()
        assert ([job["id"] for job in first["data"]], first["has_more"]) == (made[:0:-1], True)
        rest = (await server.client.get("/v1/jobs", params={"limit": 2, "after": made[1]})).json()
        assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (made[:1], False)
        assert (await server.client.get("/v1/jobs", params={"status": "succeeded"})).json()["data"] == []
        assert len((await server.client.get("/v1/jobs", params={"status": "failed"})).json()["data"]) == 3
        assert (await server.client.get("/v1/jobs", params={"method": "zero"})).json()["data"] == []
        assert (await server.client.get("/v1/jobs", params={"limit": 0})).status_code == 422

    with_server(scenario, job_command=worker("fail"))


BAD_SPECS: list[tuple[dict[str, Any], str]] = [
    ({"method": "magic"}, "body.method"),
    ({"data": {"source": "magic"}}, "body.data.source"),
    ({"hyperparameters": {"steps": 0}}, "body.hyperparameters.steps"),
    ({"hyperparameters": {"stepz": 4}}, "body.hyperparameters.stepz"),
    ({"data": {"source": "unitasks", "num_samples": "many"}}, "body.data.num_samples"),
    ({"data": {"source": "jsonl", "path": "/etc/passwd"}}, "body.data.path"),
    ({"data": {"source": "jsonl", "path": "../../etc/passwd"}}, "body.data.path"),
    ({"data": {"source": "jsonl", "path": "not-there.jsonl"}}, "body.data.path"),
    ({"data": {"source": "jsonl", "path": "empty.jsonl"}}, "body.data.path"),
    ({"data": {"source": "traces", "trace_ids": ["tr_nobody"]}}, "body.data.trace_ids.0"),
    ({"base_checkpoint": "nobody"}, "body.base_checkpoint"),
    ({"base_checkpoint": "blind"}, "body.base_checkpoint"),
    ({"output_name": "a/b"}, "body.output_name"),
    ({"output_name": "nano-omni"}, "body.output_name"),
    ({"seed": -1}, "body.seed"),
    ({"surprise": 1}, "body.surprise"),
    (
        {"method": "perpo", "hyperparameters": {"rollouts_per_prompt": 1}},
        "body.hyperparameters.rollouts_per_prompt",
    ),
    ({"method": "zero", "hyperparameters": {"pesft": None}, "activate": True}, "body.activate"),
    (
        {"method": "benchmark", "hyperparameters": {"compare_with": "nobody"}},
        "body.hyperparameters.compare_with",
    ),
    (
        {"method": "pipeline", "data": {"pesft": {"source": "unitasks", "num_samples": 0}}, "hyperparameters": {}},
        "body.data.pesft.num_samples",
    ),
]


def test_what_cannot_be_done_is_refused_before_anything_starts(with_server: Callable[..., Any], package: Path) -> None:
    blind = package / "blind"
    blind.mkdir()
    for file in (package / "nano-omni-r1").iterdir():
        (blind / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((blind / "manifest.json").read_text())
    manifest["capabilities"]["images_in_answer"] = False
    (blind / "manifest.json").write_text(json.dumps(manifest))

    async def scenario(server: Server) -> None:
        (server.home / "empty.jsonl").touch()
        for change, path in BAD_SPECS:
            answer = await server.client.post("/v1/jobs", json={**SPEC, **change})
            assert answer.status_code == 422, (change, answer.text)
            assert path in [error["path"] for error in answer.json()["errors"]], (change, answer.text)
        assert (await server.client.get("/v1/jobs")).json()["data"] == []
        assert list((server.home / "jobs").iterdir()) == []

    with_server(scenario, job_command=worker("succeed"))


def test_an_upload_is_checked_and_kept_by_its_content(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        async def upload(data: bytes, kind: str = "application/x-ndjson") -> httpx.Response:
            return await server.client.post("/v1/datasets", content=data, headers={"Content-Type": kind})

        first = await upload(b'{"Question": "?"}\r\n\n{"a": 1}')
        assert (first.status_code, first.json()["rows"]) == (201, 2)
        files = {"file": ("x.jsonl", b'{"Question": "?"}\r\n\n{"a": 1}')}
        assert (await server.client.post("/v1/datasets", files=files)).json() == first.json()
        assert [path.suffix for path in (server.home / "uploads").iterdir()] == [".jsonl"]
        for data, line in ((b'{"a": 1}\n[1]\n', "line 2"), (b"\xff\n", "line 1"), (b"\n \n", "empty"), (b"", "empty")):
            answer = await upload(data)
            assert (answer.status_code, line in answer.json()["detail"]) == (422, True), data
        assert code(await upload(b"{}", "text/plain")) == "unsupported_dataset"
        assert (await upload(b"{}\n" * 6_700_000)).status_code == 413

    with_server(scenario)


def test_saved_traces_become_the_data_of_a_job(with_server: Callable[..., Any]) -> None:
    async def scenario(server: Server) -> None:
        server.services.jobs._checkpoints = FakeCheckpoints()
        trace = await server.finished((await server.create())["id"])
        job = await post(server, data={"source": "traces", "trace_ids": [trace["id"]]})
        assert statuses(await events(server, job["id"]))[-1] == "succeeded"
        told = json.loads((server.home / "jobs" / job["id"] / "job.json").read_text())
        from training.formats import read_traces

        (sample,) = read_traces(told["spec"]["data"]["path"])
        assert sample.question == trace["question"]
        assert [step.text for step in sample.steps] == [step["text"].strip() for step in trace["steps"]]
        assert [step.picture is not None for step in sample.steps] == [True, True]
        assert sample.answer == trace["answer"]

    with_server(scenario, job_command=worker("succeed"))


def test_a_base_that_was_deleted_while_the_job_waited_is_told(with_server: Callable[..., Any], package: Path) -> None:
    async def scenario(server: Server) -> None:
        server.services.jobs._checkpoints = FakeCheckpoints()
        first = await post(server)
        await events(server, first["id"], until=of_type("metrics"))
        second = await post(server, base_checkpoint="other")
        for file in (package / "other").iterdir():
            file.unlink()
        (package / "other").rmdir()
        (server.home / "jobs" / first["id"] / "go").touch()
        found = await events(server, second["id"])
        assert found[-1].data["error"]["code"] == "unknown_checkpoint"

    other = package / "other"
    other.mkdir()
    for file in (package / "nano-omni-r1").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    with_server(scenario, job_command=worker("wait"), max_jobs=1)
