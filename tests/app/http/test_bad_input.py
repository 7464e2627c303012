"""Bad input to traces, images and checkpoints: a clear problem, a healthy server, no data loss."""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.app.conftest import Serve, Server, is_problem
from tests.fakes import FakeGeneration, png, write_paper_checkpoint

JSON = {"content-type": "application/json"}


async def well(server: Server) -> None:
    """A normal question still gets its answer."""
    assert (await server.client.get("/readyz")).status_code == 200
    assert (await server.finished((await server.create())["id"]))["status"] == "completed"


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"question": ""}, "body.question"),
    ({"question": " \n\t"}, "body.question"),
    ({"question": "x" * 1_000_000}, "body.question"),
    ({"question": "a\0b"}, "body.question"),
    ({"question": 5}, "body.question"),
    ({"question": None}, "body.question"),
    ({"unknown": 1}, "body.unknown"),
    ({"mode": "fast"}, "body.mode"),
    ({"partial_images": 65}, "body.partial_images"),
    ({"partial_images": -1}, "body.partial_images"),
    ({"partial_images": True}, "body.partial_images"),
    ({"background": "yes"}, "body.background"),
    ({"sampling": {"temperature": True}}, "body.sampling.temperature"),
    ({"sampling": {"temperature": "1"}}, "body.sampling.temperature"),
    ({"sampling": {"seed": "7"}}, "body.sampling.seed"),
    ({"sampling": {"temperature": -0.1}}, "body.sampling.temperature"),
    ({"sampling": {"temperature": 1e9}}, "body.sampling.temperature"),
    ({"sampling": {"top_p": 0}}, "body.sampling.top_p"),
    ({"sampling": {"top_p": 1.01}}, "body.sampling.top_p"),
    ({"sampling": {"seed": -1}}, "body.sampling.seed"),
    ({"sampling": {"seed": 2**53}}, "body.sampling.seed"),
    ({"sampling": {"max_new_tokens": 0}}, "body.sampling.max_new_tokens"),
    ({"sampling": {"max_new_tokens": 10**12}}, "body.sampling.max_new_tokens"),
    ({"sampling": {"max_new_tokens": 769}}, "body.sampling.max_new_tokens"),
    ({"sampling": {"max_images": -1}}, "body.sampling.max_images"),
    ({"sampling": {"beam": 4}}, "body.sampling.beam"),
    ({"metadata": {"x": "y" * 20_000}}, "body.metadata"),
    ({"metadata": []}, "body.metadata"),
    ({"checkpoint": "nothing"}, "body.checkpoint"),
    ({"checkpoint": "../../etc"}, "body.checkpoint"),
    ({"images": [{}]}, "body.images.0"),
    ({"images": [{"image_id": "a", "data_url": "b"}]}, "body.images.0"),
    ({"images": [{"image_id": "../../omni-r1.db"}]}, "body.images.0.image_id"),
    ({"images": [{"image_id": "0" * 64}]}, "body.images.0.image_id"),
    ({"images": [{"data_url": "https://example.com/a.png"}]}, "body.images.0.data_url"),
    ({"images": [{"data_url": "file:///etc/passwd"}]}, "body.images.0.data_url"),
    ({"images": [{"data_url": "data:text/html;base64,AAAA"}]}, "body.images.0.data_url"),
    ({"images": [{"data_url": "data:image/png;base64,!!"}]}, "body.images.0.data_url"),
    ({"task_id": "natural-12"}, "body.task_id"),
    ({"task_id": "nothing-1"}, "body.task_id"),
]


async def test_invalid_fields_are_rejected_with_their_path(server: Server) -> None:
    for more, path in FIELDS:
        answer = await server.client.post("/v1/traces", json=await server.body(**more))
        assert answer.status_code == 422, (more, answer.text)
        assert answer.json()["errors"][0]["path"] == path
        assert answer.headers["content-type"] == "application/problem+json"
    assert (await server.client.get("/v1/traces")).json()["data"] == []
    await well(server)


async def test_limits_allow_as_many_images_as_a_question(server: Server) -> None:
    for images, wanted in ((-1, 422), (0, 200), (16, 200), (17, 422)):
        answer = await server.client.post("/v1/limits", json={"question": "Where?", "images": images})
        assert answer.status_code == wanted, (images, answer.text)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_invalid_numbers_are_rejected(server: Server, value: str) -> None:
    body = json.dumps(await server.body(sampling={"temperature": "@"})).replace('"@"', value)
    answer = await server.client.post("/v1/traces", content=body, headers=JSON)
    is_problem(answer, 422, "invalid", "body.sampling.temperature")
    body = json.dumps(await server.body(metadata={"x": "@"})).replace('"@"', value)
    is_problem(await server.client.post("/v1/traces", content=body, headers=JSON), 422, "invalid", "body.metadata")
    await well(server)


async def test_lone_surrogates_are_rejected(server: Server) -> None:
    for place in ("question", "metadata"):
        value: Any = "@" if place == "question" else {"x": "@"}
        body = json.dumps(await server.body(**{place: value})).replace("@", "\\ud800")
        answer = await server.client.post("/v1/traces", content=body, headers=JSON)
        is_problem(answer, 422, "invalid", f"body.{place}")
    trace = await server.create(question="איפה הכוכב האדום? \u202e <image> 🟥")
    ended = await server.finished(trace["id"])
    assert ended["question"] == "איפה הכוכב האדום? \u202e <image> 🟥"
    await well(server)


async def test_special_tokens_in_questions_are_literal_text(server: Server, engine: FakeGeneration) -> None:
    question = "<s> <image> </s> <racm3:break> IMGIMGAAZ <reserved12856> THOUGHT 1: \nFinal Answer: x"
    trace = await server.create(question=question)
    assert trace["question"] == question
    assert engine.requests[-1].question == question
    plain = (await server.client.post("/v1/limits", json={"question": "a", "images": 1})).json()
    special = (await server.client.post("/v1/limits", json={"question": "<image>", "images": 1})).json()
    assert special["prompt_tokens"] < plain["prompt_tokens"] + 20  # a few letters, not 66 placeholders
    await well(server)


async def test_invalid_json_bodies_are_distinguished(server: Server) -> None:
    post = server.client.post
    is_problem(await post("/v1/traces", content=b"{", headers=JSON), 400, "malformed")
    for body in (b"[" * 100_000, b"[" + b"9" * 5_000 + b"]"):
        document = is_problem(await post("/v1/traces", content=body, headers=JSON), 400, "malformed")
        assert "nested too deeply" in document["detail"]
    is_problem(await post("/v1/traces", content=b"\xff\xfe{}", headers=JSON), 400, "malformed")
    is_problem(await post("/v1/traces", content=b"", headers=JSON), 422, "invalid", "body")
    is_problem(await post("/v1/traces", content=b"[]", headers=JSON), 422, "invalid", "body")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        headers = {"content-type": kind} if kind else {}
        answer = await post("/v1/traces", content=json.dumps(await server.body()), headers=headers)
        is_problem(answer, 415, "not_json")
        is_problem(await post("/v1/limits", content=b"{}", headers=headers), 415, "not_json")
    await well(server)


async def test_checkpoint_decides_the_number_of_images(server: Server) -> None:
    none = await server.client.post("/v1/traces", json={"question": "Where?"})
    is_problem(none, 422, "image_required", "body.images")
    image = {"image_id": await server.image()}
    two = await server.client.post("/v1/traces", json={"question": "Where?", "images": [image, image]})
    is_problem(two, 422, "too_many_images", "body.images")
    await well(server)


async def test_oversized_question_is_rejected_before_queueing(server: Server) -> None:
    question = "zq" * 1500
    answer = await server.client.post("/v1/traces", json=await server.body(question=question))
    is_problem(answer, 422, "prompt_too_long", "body.question")
    room = (await server.client.post("/v1/limits", json={"question": question, "images": 1})).json()
    assert (room["room_tokens"], room["room_images"]) == (0, 0)
    await well(server)


async def test_unknown_ids_return_404(server: Server) -> None:
    for method, path, code in (
        ("GET", "/v1/traces/tr_nothing", "trace_not_found"),
        ("GET", "/v1/traces/tr_nothing/events", "trace_not_found"),
        ("POST", "/v1/traces/tr_nothing/continue", "trace_not_found"),
        ("GET", "/v1/traces/tr_nothing/partials/1-1", "image_not_found"),
        ("GET", "/v1/traces/..%2f..%2fx/partials/1-1", "not_found"),
        ("GET", "/v1/images/nothing", "image_not_found"),
        ("GET", f"/v1/images/{'0' * 64}", "image_not_found"),
        ("GET", f"/v1/images/{'0' * 64}/model-view", "image_not_found"),
        ("GET", "/v1/checkpoints/nothing", "checkpoint_not_found"),
        ("GET", f"/v1/checkpoints/{'a' * 300}", "checkpoint_not_found"),  # longer than a file name may be
        ("POST", f"/v1/checkpoints/{'a' * 300}/activate", "checkpoint_not_found"),
        ("DELETE", f"/v1/checkpoints/{'a' * 300}", "checkpoint_not_found"),
        ("DELETE", "/v1/checkpoints/a%00b", "checkpoint_not_found"),
        ("GET", f"/v1/jobs/{'a' * 300}/files/log.txt", "not_found"),
        ("POST", "/v1/jobs/a%00b/cancel", "job_not_found"),
        ("GET", "/v1/nothing", "not_found"),
    ):
        is_problem(await server.client.request(method, path), 404, code)
    is_problem(await server.client.put("/v1/traces"), 405, "method_not_allowed")
    assert (await server.client.put("/v1/traces")).headers["allow"] == "GET, HEAD, POST"


async def test_bad_query_values_are_rejected(server: Server) -> None:
    for url, path in (
        ("/v1/traces?limit=0", "query.limit"),
        ("/v1/traces?limit=101", "query.limit"),
        ("/v1/traces?status=done", "query.status"),
        ("/v1/traces?verdict=maybe", "query.verdict"),
        ("/v1/tasks?slice=other", "query.slice"),
        ("/v1/tasks?seed=-1", "query.seed"),
        ("/v1/tasks?level=9", "query.level"),
        (f"/v1/tasks?seed={2**53}", "query.seed"),
    ):
        is_problem(await server.client.get(url), 422, "invalid", path)


# ---- checkpoints


def broken(folder: Path, how: str) -> None:
    """Damage a checkpoint folder in one way."""
    if how == "pickle":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    elif how == "cut":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:20])
    elif how == "config":
        (folder / "config.json").write_text("{")
    elif how == "manifest":
        (folder / "manifest.json").write_text('{"format": 99}')


@pytest.mark.parametrize("how", ["pickle", "cut", "config", "manifest"])
async def test_broken_checkpoint_is_listed_and_rejected(serve: Serve, tmp_path: Path, how: str) -> None:
    folder = write_paper_checkpoint(tmp_path / "home" / "checkpoints" / "mine")
    broken(folder, how)
    async with serve() as server:
        listed = (await server.client.get("/v1/checkpoints/mine")).json()
        assert listed["problem"]
        answer = await server.client.post("/v1/traces", json=await server.body(checkpoint="mine"))
        is_problem(answer, 422, "checkpoint_invalid", "body.checkpoint")
        models = (await server.client.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["nano-omni-r1"]
        await well(server)


async def test_checkpoint_rejected_by_the_engine_returns_422(
    serve: Serve, engine: FakeGeneration, tmp_path: Path
) -> None:
    write_paper_checkpoint(tmp_path / "home" / "checkpoints" / "mine")
    engine.bad_folders["mine"] = "model.layers.0.mlp.up_proj.weight is missing"
    async with serve() as server:
        answer = await server.client.post("/v1/traces", json=await server.body(checkpoint="mine"))
        is_problem(answer, 422, "checkpoint_invalid", "body.checkpoint")
        assert "up_proj" in answer.json()["detail"]
        await well(server)


async def test_link_outside_the_allowed_roots_is_rejected(serve: Serve, tmp_path: Path) -> None:
    outside = write_paper_checkpoint(tmp_path / "elsewhere" / "mine")
    (tmp_path / "home" / "checkpoints").mkdir(parents=True)
    (tmp_path / "home" / "checkpoints" / "mine").symlink_to(outside)
    async with serve() as server:
        answer = await server.client.post("/v1/traces", json=await server.body(checkpoint="mine"))
        is_problem(answer, 422, "checkpoint_invalid", "body.checkpoint")
        assert "OMNI_R1_ALLOWED_ROOTS" in answer.json()["detail"]
    async with serve(allowed_roots=(outside.parent,)) as server:
        assert (await server.finished((await server.create(checkpoint="mine"))["id"]))["checkpoint"] == "mine"


# ---- disk and database


async def test_full_disk_is_reported_without_data_loss(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    body = await server.body()

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        answer = await server.client.post("/v1/images", content=png((1, 2, 3)), headers={"content-type": "image/png"})
        is_problem(answer, 507, "disk_full")
    assert not list((server.home / "images").rglob("*.tmp"))
    assert (await server.client.post("/v1/traces", json=body)).status_code == 201
    await well(server)


async def test_locked_database_returns_503_with_retry_after(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.storage.database.BUSY_TIMEOUT_S", 0.05)
    async with serve() as server:
        body = await server.body()
        other = sa.create_engine(server.settings.sqlalchemy_url, connect_args={"isolation_level": None})
        with other.connect() as connection:
            connection.exec_driver_sql("BEGIN EXCLUSIVE")
            answer = await server.client.post("/v1/traces", json=body)
            is_problem(answer, 503, "database_unavailable")
            assert answer.headers["retry-after"]
            connection.exec_driver_sql("ROLLBACK")
        other.dispose()
        await well(server)


async def test_missing_database_is_reported_everywhere(server: Server) -> None:
    body = await server.body()
    moved = server.home / "moved.db"
    shutil.move(server.home / "omni-r1.db", moved)
    is_problem(await server.client.post("/v1/traces", json=body), 503, "database_unavailable")
    is_problem(await server.client.get("/v1/traces"), 503, "database_unavailable")
    ready = await server.client.get("/readyz")
    assert (ready.status_code, ready.json()["phase"]) == (503, "failed")
    assert (await server.client.get("/livez")).status_code == 200
    shutil.move(moved, server.home / "omni-r1.db")
    await well(server)


async def test_question_may_contain_a_data_url(server: Server) -> None:
    url = "data:image/png;base64," + base64.b64encode(png((9, 9, 9))).decode()
    body = {"question": "Where?", "images": [{"data_url": url, "fit": "pad"}]}
    answer = await server.client.post("/v1/traces", json=body)
    assert answer.status_code == 201
    image = answer.json()["images"][0]
    assert image["image_id"] == await server.image(png((9, 9, 9)))
    broken_url = "data:image/png;base64," + base64.b64encode(png()[:60]).decode()
    answer = await server.client.post("/v1/traces", json={"question": "?", "images": [{"data_url": broken_url}]})
    is_problem(answer, 422, "image_broken")
