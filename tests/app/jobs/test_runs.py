"""The workbench over HTTP: labels, filters, metrics of several jobs."""

from __future__ import annotations

from typing import Any

import pytest

from app.contract.schemas_jobs import JobOut, SeriesList
from tests.app.conftest import Serve, Server, both_databases, is_problem
from tests.app.job_helpers import SPEC, code, events, get, post, worker


@both_databases
async def test_jobs_are_found_by_name_and_tag(serve: Serve) -> None:
    async with serve(job_command=worker("fail")) as server:
        one = await post(server, name=" circles ", tags=["a", "b"], note="first")
        two = await post(server, name="circles")
        assert (one["name"], one["tags"], one["note"]) == ("circles", ["a", "b"], "first")
        assert not one["spec"].keys() & {"name", "tags", "note"}
        for job in (one, two):
            await events(server, job["id"])
        patch = {"tags": ["c", "a", "c"], "name": None}
        changed = await server.client.patch(f"/v1/jobs/{two['id']}", json=patch)
        assert JobOut.model_validate(changed.json()).tags == ["a", "c"]

        async def found(**wanted: str) -> list[str]:
            return [job["id"] for job in (await server.client.get("/v1/jobs", params=wanted)).json()["data"]]

        assert await found(tag="a") == [two["id"], one["id"]]
        assert await found(tag="c") == [two["id"]]
        assert await found(name="circles") == [one["id"]]
        assert await found(tag="b", status="succeeded") == []
        await server.client.patch(f"/v1/jobs/{two['id']}", json={"name": "circles", "note": ""})
        assert await found(name="circles") == [two["id"], one["id"]]  # the same name, two ids
        assert (await get(server, two["id"]))["note"] is None
        assert (await server.client.delete(f"/v1/jobs/{one['id']}")).status_code == 204
        assert await found(tag="b") == []


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"name": "x" * 101}, "body.name"),
        ({"name": " "}, "body.name"),
        ({"name": "a\u0000b"}, "body.name"),
        ({"tags": ["\u200b"]}, "body.tags.0"),
        ({"tags": [f"t{k}" for k in range(33)]}, "body.tags"),
        ({"note": "\u0000"}, "body.note"),
    ],
)
async def test_invalid_labels_are_rejected(server: Server, change: dict[str, Any], path: str) -> None:
    is_problem(await server.client.patch("/v1/jobs/job_1m8hecw2g000zcq5rn56", json=change), 422, "invalid", path)
    is_problem(await server.client.post("/v1/jobs", json={**SPEC, **change}), 422, "invalid", path)


async def test_metrics_of_several_jobs(serve: Serve) -> None:
    async with serve(job_command=worker("succeed")) as server:
        ids = [(await post(server))["id"] for _ in range(2)]
        for job_id in ids:
            await events(server, job_id)
        params = {"ids": ",".join([*ids, "job_none"]), "keys": "loss/ce,none"}
        answer = (await server.client.get("/v1/jobs/metrics", params=params)).json()
        found = SeriesList.model_validate(answer)
        assert [one.job_id for one in found.data] == ids
        assert found.missing == ["job_none"]
        assert "loss/ce" in {one.key for one in found.keys}
        for job_id, one in zip(ids, found.data, strict=True):
            rows = (await server.client.get(f"/v1/jobs/{job_id}/metrics")).json()["data"]
            own = [(row["step"], row["values"]["loss/ce"]) for row in rows if "loss/ce" in row["values"]]
            assert list(zip(one.steps, one.values, strict=True)) == own
            assert own


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({}, "query.ids"),
        ({"ids": ",".join(f"j{k}" for k in range(101))}, "query.ids"),
        ({"ids": "job_a", "keys": ",".join(f"k{k}" for k in range(51))}, "query.keys"),
        ({"ids": "job_a", "points": "1"}, "query.points"),
        ({"ids": "job_a", "from": "-1"}, "query.from"),
        ({"ids": "job_a", "start": "1"}, "query.start"),
    ],
)
async def test_invalid_charts_are_rejected(server: Server, params: dict[str, str], path: str) -> None:
    is_problem(await server.client.get("/v1/jobs/metrics", params=params), 422, "invalid", path)


async def test_unknown_job_cannot_be_labelled(server: Server) -> None:
    assert code(await server.client.patch("/v1/jobs/job_none", json={"name": "x"})) == "job_not_found"
