"""Ratings, tags and notes: kept over restarts, filters of lists, bad input, and as a selection of training data."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from app.contract.schemas import Trace, TraceList
from app.storage import tables
from tests.app.conftest import Serve, Server, both_databases, is_problem
from tests.app.job_helpers import SPEC
from tests.fakes import FakeGeneration, held


async def patch(server: Server, trace_id: str, **change: Any) -> dict[str, Any]:
    answer = await server.client.patch(f"/v1/traces/{trace_id}", json=change)
    assert answer.status_code == 200, answer.text
    Trace.model_validate(answer.json())
    return dict(answer.json())


async def completed(server: Server, count: int = 1, **change: Any) -> list[str]:
    """Ids of new traces, oldest first, with this curation."""
    made = [(await server.finished((await server.create())["id"]))["id"] for _ in range(count)]
    if change:
        for trace_id in made:
            await patch(server, trace_id, **change)
    return made


async def listed(server: Server, **params: Any) -> list[str]:
    answer = await server.client.get("/v1/traces", params=params)
    assert answer.status_code == 200, answer.text
    TraceList.model_validate(answer.json())
    return [entry["id"] for entry in answer.json()["data"]]


@both_databases
async def test_curation_survives_a_restart(serve: Serve) -> None:
    async with serve() as server:
        (trace_id,) = await completed(server)
        kept = {"rating": 1, "tags": ["a box", "Ökonomie", "好"], "note": "Zeile 1\nline 2"}
        before = await patch(server, trace_id, **kept)
        assert before.items() >= kept.items()
        await server.stop()
        await server.start()
        assert await server.get(trace_id) == before
        (entry,) = (await server.client.get("/v1/traces")).json()["data"]
        assert entry.items() >= kept.items()


async def test_new_trace_is_not_curated(server: Server) -> None:
    trace = await server.create()
    assert (trace["rating"], trace["tags"], trace["note"]) == (None, [], None)


async def test_absent_fields_stay_unchanged(server: Server) -> None:
    (trace_id,) = await completed(server, rating=-1, tags=["b", "a"], note="Why?")
    before = await server.get(trace_id)
    assert await patch(server, trace_id) == before
    assert await patch(server, trace_id, note="") == before | {"note": None}
    assert await patch(server, trace_id, tags=["c", " c ", "c"]) == before | {"note": None, "tags": ["c"]}
    assert await patch(server, trace_id, rating=0) == before | {"note": None, "tags": ["c"], "rating": 0}
    assert await patch(server, trace_id, rating=None, tags=[]) == before | {"note": None, "tags": [], "rating": None}


async def test_running_trace_keeps_its_curation(server: Server, engine: FakeGeneration) -> None:
    engine.script = held
    trace_id = (await server.create())["id"]
    await server.until(trace_id, "step.completed")
    assert (await patch(server, trace_id, rating=1, tags=["early"]))["status"] == "running"
    engine.go("end")
    ended = await server.finished(trace_id)
    assert (ended["status"], ended["rating"], ended["tags"]) == ("completed", 1, ["early"])


@both_databases
async def test_lists_filter_and_page_by_rating_and_tag(serve: Serve) -> None:
    async with serve() as server:
        good = await completed(server, 3, rating=1, tags=["keep", "100%"])
        bad = await completed(server, 2, rating=-1, tags=["keep"])
        (plain,) = await completed(server)
        assert await listed(server, rating=1) == good[::-1]
        assert await listed(server, rating=0) == []
        assert await listed(server, tag="keep") == [*bad[::-1], *good[::-1]]
        assert await listed(server, tag="keep", rating=-1) == bad[::-1]
        assert await listed(server, tag="Keep") == []
        assert await listed(server, tag="100%") == good[::-1]
        assert await listed(server, tag="100") == []
        assert plain in await listed(server)
        pages, after = [], {}
        while found := await listed(server, tag="keep", limit=2, **after):
            pages.append(found)
            after = {"after": found[-1]}
        assert [len(page) for page in pages] == [2, 2, 1]
        assert [one for page in pages for one in page] == [*bad[::-1], *good[::-1]]


@both_databases
async def test_deleted_trace_leaves_no_tags(serve: Serve) -> None:
    async with serve() as server:
        (trace_id,) = await completed(server, tags=["x"])
        assert (await server.client.delete(f"/v1/traces/{trace_id}")).status_code == 204
        with server.services.db.read() as connection:
            assert connection.execute(sa.select(sa.func.count()).select_from(tables.trace_tags)).scalar() == 0
        is_problem(await server.client.patch(f"/v1/traces/{trace_id}", json={"rating": 1}), 404, "trace_not_found")


BAD: list[tuple[Any, str]] = [
    ({"rating": 2}, "body.rating"),
    ({"rating": "1"}, "body.rating"),
    ({"rating": True}, "body.rating"),
    ({"rating": 1.0}, "body.rating"),
    ({"tags": None}, "body.tags"),
    ({"tags": "keep"}, "body.tags"),
    ({"tags": [""]}, "body.tags.0"),
    ({"tags": ["ok", " \t"]}, "body.tags.1"),
    ({"tags": ["a\nb"]}, "body.tags.0"),
    ({"tags": ["a\0b"]}, "body.tags.0"),
    ({"tags": ["a\u202eb"]}, "body.tags.0"),  # right-to-left override
    ({"tags": ["\ud800"]}, "body.tags.0"),
    ({"tags": ["x" * 33]}, "body.tags.0"),
    ({"tags": [7]}, "body.tags.0"),
    ({"tags": [f"t{k}" for k in range(33)]}, "body.tags"),
    ({"note": "x" * 2001}, "body.note"),
    ({"note": "a\0b"}, "body.note"),
    ({"note": "\ud800"}, "body.note"),
    ({"note": 5}, "body.note"),
    ({"stars": 5}, "body.stars"),
    ([], "body"),
]


async def test_invalid_curation_changes_nothing(server: Server) -> None:
    (trace_id,) = await completed(server, rating=1, tags=["x"], note="n")
    before = await server.get(trace_id)

    async def sent(change: Any) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return await server.client.patch(f"/v1/traces/{trace_id}", content=json.dumps(change), headers=headers)

    for change, path in BAD:
        assert is_problem(await sent(change), 422, "invalid")["errors"][0]["path"] == path, change
    form = await server.client.patch(f"/v1/traces/{trace_id}", content=b"{}", headers={"content-type": "text/plain"})
    is_problem(form, 415, "not_json")
    for params in ({"rating": 2}, {"rating": "good"}, {"tag": "x" * 33}, {"tag": "a\0"}):
        is_problem(await server.client.get("/v1/traces", params=params), 422, "invalid")
    assert await server.get(trace_id) == before


@pytest.mark.parametrize("tag", ["a", "", 7])
async def test_ten_thousand_tags_are_rejected_quickly(server: Server, tag: Any) -> None:
    (trace_id,) = await completed(server)
    started = time.perf_counter()
    answer = await server.client.patch(f"/v1/traces/{trace_id}", json={"tags": [tag] * 10_000})
    assert time.perf_counter() - started < 5
    is_problem(answer, 422, "invalid")


async def test_job_takes_the_traces_that_match(server: Server) -> None:
    good = await completed(server, 3, rating=1, tags=["keep"])
    bad = await completed(server, 1, rating=-1, tags=["keep"])
    resolve = server.services.jobs._intake.check

    def ids(**data: Any) -> list[str]:
        from training.spec.spec import parse_spec

        resolved, _ = resolve(parse_spec({**SPEC, "data": {"source": "traces", **data}}), "job_0000")
        assert {resolved["data"][name] for name in ("rating", "tag", "verdict")} == {None}
        parse_spec(resolved)
        return list(resolved["data"]["trace_ids"])

    assert ids(rating=1) == good[::-1]
    assert ids(tag="keep") == [*bad, *good[::-1]]
    assert ids(tag="keep", rating=-1) == bad
    assert ids(rating=1, num_samples=2) == good[:0:-1]

    async def rejected(path: str, **data: Any) -> None:
        answer = await server.client.post("/v1/jobs", json={**SPEC, "data": {"source": "traces", **data}})
        is_problem(answer, 422, "invalid", path)

    await rejected("body.data", tag="nothing has it")
    await rejected("body.data", verdict="right")
    await rejected("body.data", rating=1, trace_ids=good)
    await rejected("body.data.rating", rating=3)
    await rejected("body.data.tag", tag="x" * 33)
    await rejected("body.data")
