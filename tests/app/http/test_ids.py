"""Ids and names that no database can look up, ids of another kind, and paths to fields of a union."""

from __future__ import annotations

import pytest

from tests.app.conftest import Server, both_databases, is_problem


@both_databases
async def test_nul_in_an_id_is_404_and_in_a_name_422(server: Server) -> None:
    for method, path, code in (
        ("GET", "/v1/traces/tr_%00", "trace_not_found"),
        ("GET", "/v1/traces/%00/events", "trace_not_found"),
        ("GET", "/v1/traces/%00/tree", "trace_not_found"),
        ("GET", "/v1/traces/%00/tokens", "trace_not_found"),
        ("POST", "/v1/traces/%00/cancel", "trace_not_found"),
        ("DELETE", "/v1/traces/a%00b", "trace_not_found"),
        ("GET", "/v1/groups/gr_%00", "group_not_found"),
        ("GET", "/v1/groups/gr_%00/events", "group_not_found"),
        ("POST", "/v1/groups/%00/cancel", "group_not_found"),
        ("DELETE", "/v1/groups/%00", "group_not_found"),
        ("GET", "/v1/jobs/job_%00", "job_not_found"),
        ("GET", "/v1/images/%00", "image_not_found"),
        ("GET", "/v1/checkpoints/%00", "checkpoint_not_found"),
    ):
        is_problem(await server.client.request(method, path), 404, code)
    for name in ("checkpoint", "parent", "group"):
        answer = await server.client.get(f"/v1/traces?{name}=%00")
        is_problem(answer, 422, "invalid", f"query.{name}")
    trace = await server.finished((await server.create())["id"])
    url = f"/v1/traces/{trace['id']}/branches"
    other = {"use": "other", "trace_id": "\0", "step": 1}
    for body, path in (
        ({"after_step": 0, "checkpoint": "\0"}, "body.checkpoint"),
        ({"after_step": 1, "edits": [{"step": 1, "image": other}]}, "body.edits.0.image.trace_id"),
    ):
        is_problem(await server.client.post(url, json=body), 422, "invalid", path)
    asked = await server.client.post("/v1/traces", json=await server.body(checkpoint="a\0"))
    is_problem(asked, 422, "invalid", "body.checkpoint")


async def test_malformed_ids_in_filters_are_422(server: Server) -> None:
    trace, other = await server.create(), "0" * 20
    for name, valid in (("parent", f"tr_{other}"), ("group", f"gr_{other}"), ("after", f"tr_{other}")):
        listed = await server.client.get(f"/v1/traces?{name}={valid}")
        assert (listed.status_code, listed.json()["data"]) == (200, []), name
        wrong = ("foo", "", f"job_{other}", f"{valid}0", f"{valid}%0A")
        for value in (*wrong, trace["id"]) if name == "group" else wrong:
            is_problem(await server.client.get(f"/v1/traces?{name}={value}"), 422, "invalid", f"query.{name}")


async def test_ids_of_another_kind_are_404(server: Server) -> None:
    trace = await server.finished((await server.create(n=2))["id"])
    group_id = trace["group_id"]
    await server.stream(group_id, kind="groups")
    for path in (group_id, f"{group_id}/events", f"{group_id}/tree", f"{group_id}/tokens"):
        is_problem(await server.client.get(f"/v1/traces/{path}"), 404, "trace_not_found")
    for path in (trace["id"], f"{trace['id']}/events"):
        is_problem(await server.client.get(f"/v1/groups/{path}"), 404, "group_not_found")
    is_problem(await server.client.delete(f"/v1/groups/{trace['id']}"), 404, "group_not_found")
    is_problem(await server.client.delete(f"/v1/traces/{group_id}"), 404, "trace_not_found")
    assert (await server.client.get(f"/v1/groups/{group_id}")).json()["trace_ids"][0] == trace["id"]


@pytest.mark.parametrize("step", ["2", None, 1.5, []])
async def test_field_of_a_union_is_named_by_its_path(server: Server, step: object) -> None:
    trace = await server.finished((await server.create())["id"])
    answer = await server.client.post(f"/v1/traces/{trace['id']}/alternatives", json={"step": step, "token": 0})
    problem = is_problem(answer, 422, "invalid")
    assert {error["path"] for error in problem["errors"]} == {"body.step"}
