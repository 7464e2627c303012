"""Requests to the job API: delete, idempotency, lists, rejections, uploads, saved traces as data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from tests.app.conftest import Serve, Server, both_databases
from tests.app.job_helpers import SPEC, FakeCheckpoints, code, events, of_type, post, statuses, worker


@both_databases
async def test_deleting_a_job_keeps_its_checkpoints(serve: Serve) -> None:
    async with serve(job_command=worker("succeed")) as server:
        registry = server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        await events(server, job["id"])
        assert (await server.client.delete(f"/v1/jobs/{job['id']}")).status_code == 204
        for path in ("", "/events", "/metrics", "/files/samples/a-1.png"):
            assert (await server.client.get(f"/v1/jobs/{job['id']}{path}")).status_code == 404, path
        assert [path.name for path in (server.home / "jobs" / job["id"]).iterdir()] == ["checkpoints"]
        assert registry.registered[0]["folder"].is_dir()
        assert code(await server.client.delete(f"/v1/jobs/{job['id']}")) == "job_not_found"


@both_databases
async def test_same_key_starts_one_job(serve: Serve) -> None:
    async with serve(job_command=worker("succeed")) as server:
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


@both_databases
async def test_lists_are_paged_and_filtered(serve: Serve) -> None:
    async with serve(job_command=worker("fail")) as server:
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


async def test_data_on_the_hub_is_left_to_the_job(serve: Serve) -> None:
    async with serve(job_command=worker("succeed")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        data = {"source": "jsonl", "path": "hf://datasets/lab/shapes@v1/data", "columns": {"question": "query"}}
        job = await post(server, data=data)
        await events(server, job["id"])
        stored = (await server.client.get(f"/v1/jobs/{job['id']}")).json()["spec"]["data"]
        assert {name: stored[name] for name in data} == data


BAD_SPECS: list[tuple[dict[str, Any], str]] = [
    ({"method": "magic"}, "body.method"),
    ({"data": {"source": "magic"}}, "body.data.source"),
    ({"hyperparameters": {"steps": 0}}, "body.hyperparameters.steps"),
    ({"hyperparameters": {"steps": 10**30}}, "body.hyperparameters.steps"),
    ({"hyperparameters": {"stepz": 4}}, "body.hyperparameters.stepz"),
    ({"data": {"source": "unitasks", "num_samples": "many"}}, "body.data.num_samples"),
    ({"data": {"source": "jsonl", "path": "/etc/passwd"}}, "body.data.path"),
    ({"data": {"source": "jsonl", "path": "../../etc/passwd"}}, "body.data.path"),
    ({"data": {"source": "jsonl", "path": "hf://lab/shapes"}}, "body.data.path"),
    ({"data": {"source": "jsonl", "path": "hf://datasets/lab/shapes", "columns": {}}}, "body.data.columns"),
    ({"data": {"source": "jsonl", "path": "not-there.jsonl"}}, "body.data.path"),
    *(
        ({"method": "perpo", "data": {**data, "difficulty": "adaptive"}}, path)
        for data, path in (
            ({"source": "jsonl", "path": "empty.jsonl"}, "body.data"),
            ({"source": "traces", "rating": 1}, "body.data"),
            ({"source": "tasks", "family": "dots"}, "body.data.difficulty"),
        )
    ),
    (
        {
            "method": "perpo",
            "data": {"source": "jsonl", "path": "empty.jsonl"},
            "hyperparameters": {"reward": {"functional": 1.0}},
        },
        "body",
    ),
    ({"data": {"source": "jsonl", "path": "empty.jsonl"}}, "body.data.path"),
    ({"data": {"source": "traces", "trace_ids": ["tr_nobody"]}}, "body.data.trace_ids.0"),
    ({"data": {"source": "jsonl", "path": "~no-such-user/a.jsonl"}}, "body.data.path"),
    ({"data": {"source": "jsonl", "path": "a" * 5_000}}, "body.data.path"),
    ({"data": {"source": "jsonl", "path": "a\0b"}}, "body.data.path"),
    ({"data": {"source": "traces", "trace_ids": ["\ud800"]}}, "body.data.trace_ids.0"),
    ({"data": {"source": "traces", "trace_ids": ["tr"] * 10_001}}, "body.data.trace_ids"),
    ({"data": {"source": "traces", "trace_ids": ["tr_nobody"], "path": "empty.jsonl"}}, "body.data"),
    ({"base_checkpoint": "nobody"}, "body.base_checkpoint"),
    ({"base_checkpoint": "\ud800"}, "body.base_checkpoint"),
    ({"base_checkpoint": "blind"}, "body.base_checkpoint"),
    ({"output_name": "a/b"}, "body.output_name"),
    ({"output_name": "nano-omni"}, "body.output_name"),
    ({"seed": -1}, "body.seed"),
    ({"surprise": 1}, "body.surprise"),
    ({"gpu": "exclusive", "num_gpus": 2}, "body.num_gpus"),
    (
        {"method": "perpo", "hyperparameters": {"rollouts_per_prompt": 1}},
        "body.hyperparameters.rollouts_per_prompt",
    ),
    ({"method": "zero", "hyperparameters": {"pesft": None}, "activate": True}, "body.activate"),
    *(
        ({"method": "benchmark", "hyperparameters": {"compare_with": name}}, "body.hyperparameters.compare_with")
        for name in ("nobody", "\ud800", "a\0", "a" * 200, "")
    ),
    ({"method": "benchmark", "hyperparameters": {"candidates": 9}}, "body.hyperparameters.candidates"),
    ({"method": "benchmark", "hyperparameters": {"candidates": 2}}, "body.hyperparameters.candidates"),
    (
        {"method": "benchmark", "hyperparameters": {"candidates": 2, "verifier": "nano-omni-r1"}},
        "body.hyperparameters.verifier",
    ),
    ({"method": "zero", "hyperparameters": {"score": "verifier"}}, "body.hyperparameters.score"),
    (
        {"method": "benchmark", "hyperparameters": {}, "data": {"source": "unitasks", "first_seed": 2**53}},
        "body.data.first_seed",
    ),
    (
        {"method": "pipeline", "data": {"pesft": {"source": "unitasks", "num_samples": 0}}, "hyperparameters": {}},
        "body.data.pesft.num_samples",
    ),
]


async def test_best_of_several_candidates_is_off_policy(server: Server) -> None:
    for setting in ({"candidates": 2}, {"verify": {"candidates": 2}}):
        answer = await server.client.post("/v1/jobs", json={**SPEC, "method": "perpo", "hyperparameters": setting})
        assert (answer.status_code, answer.json()["code"]) == (422, "off_policy")


async def test_impossible_jobs_are_rejected_before_starting(serve: Serve, package: Path) -> None:
    blind = package / "blind"
    blind.mkdir()
    for file in (package / "nano-omni-r1").iterdir():
        (blind / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((blind / "manifest.json").read_text())
    manifest["capabilities"]["images_in_answer"] = False
    (blind / "manifest.json").write_text(json.dumps(manifest))
    async with serve(job_command=worker("succeed"), device="cpu") as server:
        (server.home / "empty.jsonl").touch()
        for change, path in BAD_SPECS:
            body = json.dumps({**SPEC, **change})
            answer = await server.client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 422, (change, answer.text)
            assert path in [error["path"] for error in answer.json()["errors"]], (change, answer.text)
        assert (await server.client.get("/v1/jobs")).json()["data"] == []
        assert list((server.home / "jobs").iterdir()) == []


async def test_upload_is_validated_and_stored_by_content(server: Server) -> None:
    async def upload(data: bytes, kind: str = "application/x-ndjson") -> httpx.Response:
        return await server.client.post("/v1/datasets", content=data, headers={"Content-Type": kind})

    first = await upload(b'{"Question": "?"}\r\n\n{"a": 1}')
    assert (first.status_code, first.json()["rows"]) == (201, 2)
    files = {"file": ("x.jsonl", b'{"Question": "?"}\r\n\n{"a": 1}')}
    assert (await server.client.post("/v1/datasets", files=files)).json() == first.json()
    assert [path.suffix for path in (server.home / "uploads").iterdir()] == [".jsonl"]
    for data, line in (
        (b'{"a": 1}\n[1]\n', "line 2: no JSON object"),
        (b"\xff\n", "line 1: not UTF-8"),
        (b'{}\n{"a": "\\uD800"}', "line 2: half of a character"),
        (b"\n \n", "empty"),
        (b"", "empty"),
    ):
        answer = await upload(data)
        assert (answer.status_code, line in answer.json()["detail"]) == (422, True), data
    assert code(await upload(b"{}", "text/plain")) == "unsupported_dataset"
    assert (await upload(b"{}\n" * 6_700_000)).status_code == 413


async def test_saved_traces_become_training_data(serve: Serve) -> None:
    async with serve(job_command=worker("succeed")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        trace = await server.finished((await server.create())["id"])
        job = await post(server, data={"source": "traces", "trace_ids": [trace["id"]]})
        assert statuses(await events(server, job["id"]))[-1] == "succeeded"
        reported = json.loads((server.home / "jobs" / job["id"] / "job.json").read_text())
        from training.data.traces import read_traces

        (sample,) = read_traces(server.home / reported["spec"]["data"]["path"])
        assert sample.question == trace["question"]
        assert [step.text for step in sample.steps] == [step["text"].strip() for step in trace["steps"]]
        assert [step.image is not None for step in sample.steps] == [True, True]
        assert sample.answer == trace["answer"]


async def test_base_deleted_while_queued_is_reported(serve: Serve, package: Path) -> None:
    other = package / "other"
    other.mkdir()
    for file in (package / "nano-omni-r1").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    async with serve(job_command=worker("wait"), max_jobs=1) as server:
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
