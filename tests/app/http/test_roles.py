"""Named keys: every route by every role, limits, revocation, sessions, secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.cli.main import main
from app.contract.words import ROLES
from app.http.roles import ROLE_OF
from app.http.routes.api import ROUTES
from app.storage import keys, tables
from app.storage.keys import Caller, KeyStore
from tests.app.conftest import Serve, Server, both_databases, is_problem
from tests.app.job_helpers import SPEC, worker
from tests.fakes import FakeGeneration, held

MAIN = "correct-horse-battery-staple"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def keys_of(server: Server) -> KeyStore:
    return KeyStore(server.services.db)


def forget(server: Server) -> None:
    """Let the server read its keys again."""
    assert server.services.key is not None
    server.services.key._read_at = None


def routes() -> set[str]:
    """`METHOD path` of the API's routes."""
    return {f"{method} {route.path}" for route in ROUTES for method in route.methods - {"HEAD"}}  # type: ignore[attr-defined]


def test_every_route_has_one_role() -> None:
    assert set(ROLE_OF) == routes()


async def test_every_route_by_every_role(serve: Serve) -> None:
    async with serve(api_key=MAIN) as server:
        secrets = {role: keys_of(server).add(Caller(role, role)) for role in ROLES}
        for route, needed in ROLE_OF.items():
            method, path = route.split(" ")
            if path in ("/livez", "/readyz", "/login"):
                continue
            path = re.sub(r"\{[^}]*\}", "none", path)
            for role, secret in secrets.items():
                answer = await server.client.request(method, path, headers=bearer(secret), json={"none": 1})
                refused = answer.status_code == 403
                assert refused == (ROLES.index(role) < ROLES.index(needed)), (route, role, answer.text)
                if refused:
                    assert "role_missing" in answer.text
                    assert needed in answer.text
        for path in ("/docs", "/openapi.json", "/static/logo.svg"):
            assert (await server.client.get(path, headers=bearer(secrets["read"]))).status_code == 200


async def test_refusal_names_the_role(serve: Serve) -> None:
    async with serve(api_key=MAIN) as server:
        key = keys_of(server).add(Caller("eve", "ask"))
        answer = await server.client.post("/v1/checkpoints/none/activate", json={}, headers=bearer(key))
        assert is_problem(answer, 403, "role_missing")["role"] == "admin"
        assert (await server.client.get("/v1/traces", headers=bearer(MAIN))).status_code == 200


async def test_grading_by_own_rewards_needs_train(serve: Serve) -> None:
    async with serve(api_key=MAIN) as server:
        key = keys_of(server).add(Caller("ada", "ask"))
        plain = {"answer": "5 km", "reference": "5000 m"}
        assert (await server.client.post("/v1/rewards", json=plain, headers=bearer(key))).status_code == 200
        own = plain | {"reward": {"custom": [{"url": "http://127.0.0.1:1/"}]}}
        answer = await server.client.post("/v1/rewards", json=own, headers=bearer(key))
        assert is_problem(answer, 403, "role_missing")["role"] == "train"


async def test_job_that_activates_needs_an_admin(serve: Serve) -> None:
    async with serve(api_key=MAIN, job_command=worker("succeed")) as server:
        key = keys_of(server).add(Caller("ada", "train"))
        answer = await server.client.post("/v1/jobs", json=SPEC | {"activate": True}, headers=bearer(key))
        is_problem(answer, 403, "role_missing")


@both_databases
async def test_revoked_key_ends_with_its_sessions(serve: Serve) -> None:
    async with serve(api_key=MAIN) as server:
        key = keys_of(server).add(Caller("ada", "read"))
        assert (await server.client.post("/login", json={"key": key})).status_code == 204
        assert (await server.client.get("/v1/traces")).status_code == 200  # by cookie
        is_problem(
            await server.client.post("/v1/traces", json={"question": "Where?", "images": []}), 403, "role_missing"
        )
        assert (await server.client.get("/v1/traces", headers=bearer(key))).status_code == 200
        (stored,) = keys_of(server).all()
        assert stored.last_used_at is not None
        assert keys_of(server).revoke("ada")
        forget(server)
        is_problem(await server.client.get("/v1/traces"), 401, "key_required")
        is_problem(await server.client.get("/v1/traces", headers=bearer(key)), 401, "wrong_key")
        again = keys_of(server).add(Caller("ada", "admin"))
        forget(server)
        assert again != key
        is_problem(await server.client.get("/v1/traces", headers=bearer(key)), 401, "wrong_key")


@both_databases
async def test_limits_on_traces(serve: Serve, engine: FakeGeneration) -> None:
    engine.script = held
    async with serve(api_key=MAIN) as server:
        few = bearer(keys_of(server).add(Caller("few", "ask", running=2)))
        slow = bearer(keys_of(server).add(Caller("slow", "ask", traces_per_minute=3)))
        server.client.headers.update(bearer(MAIN))
        body = await server.body()

        async def ask(headers: dict[str, str], n: int = 1) -> Any:
            return await server.client.post("/v1/traces", json=body | {"n": n}, headers=headers)

        answers = await asyncio.gather(*(ask(few) for _ in range(6)))
        assert sorted(answer.status_code for answer in answers) == [201, 201, 429, 429, 429, 429]
        for answer in answers:
            if answer.status_code == 429:
                is_problem(answer, 429, "quota_exceeded")
                assert int(answer.headers["retry-after"]) >= 1
        assert (await ask(slow, 4)).status_code == 429
        assert (await ask(slow, 2)).status_code == 201
        refused = await ask(slow, 2)
        is_problem(refused, 429, "quota_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert (await ask({})).status_code == 201  # the main key has no limit
        mine = (await server.client.get("/v1/traces", params={"limit": 100})).json()["data"]
        assert (await server.client.delete(f"/v1/traces/{mine[1]['id']}", headers=slow)).status_code == 204
        is_problem(await ask(slow, 2), 429, "quota_exceeded")  # deleting does not give it back
        engine.go("end")
        for answer in answers:
            if answer.status_code == 201:
                await server.finished(answer.json()["id"])
        assert (await ask(few)).status_code == 201
        t = tables.traces
        with server.services.db.write() as connection:
            connection.execute(sa.update(t).where(t.c.key_name == "slow").values(created_at="2020-01-01T00:00:00.000Z"))
            connection.execute(sa.update(tables.key_spent).values(made_at="2020-01-01T00:00:00.000Z"))
        keys.sweep(server.services.db)
        with server.services.db.read() as connection:
            assert connection.execute(sa.select(tables.key_spent)).all() == []
        assert (await ask(slow, 3)).status_code == 201


async def test_limit_on_minutes_of_jobs(serve: Serve) -> None:
    async with serve(api_key=MAIN, job_command=worker("succeed")) as server:
        headers = bearer(keys_of(server).add(Caller("ada", "train", job_minutes=10)))
        first = await server.client.post("/v1/jobs", json=SPEC, headers=headers)
        assert first.status_code == 202, first.text
        j = tables.jobs

        def used(seconds: float, **values: Any) -> None:
            with server.services.db.write() as connection:
                connection.execute(sa.update(j).values(running_s=seconds, **values))

        await server.stream(first.json()["id"], kind="jobs", **headers)
        used(599)
        second = await server.client.post("/v1/jobs", json=SPEC, headers=headers)
        assert second.status_code == 202
        await server.stream(second.json()["id"], kind="jobs", **headers)
        used(300)
        refused = await server.client.post("/v1/jobs", json=SPEC, headers=headers)
        is_problem(refused, 429, "quota_exceeded")
        gone = await server.client.delete(f"/v1/jobs/{first.json()['id']}", headers=headers)
        assert gone.status_code == 204
        is_problem(await server.client.post("/v1/jobs", json=SPEC, headers=headers), 429, "quota_exceeded")
        assert 0 < int(refused.headers["retry-after"]) <= timedelta(days=1).total_seconds()
        used(300, created_at="2020-01-01T00:00:00.000Z")
        with server.services.db.write() as connection:
            connection.execute(sa.update(tables.key_spent).values(made_at="2020-01-01T00:00:00.000Z"))
        assert (await server.client.post("/v1/jobs", json=SPEC, headers=headers)).status_code == 202


async def test_wrong_named_keys_are_braked(serve: Serve) -> None:
    async with serve(api_key=MAIN) as server:
        key = keys_of(server).add(Caller("ada", "read"))
        for _ in range(20):
            is_problem(await server.client.post("/login", json={"key": key + "x"}), 401, "wrong_key")
        is_problem(await server.client.post("/login", json={"key": key}), 429, "too_many_tries")


async def test_commands_manage_keys(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(api_key=MAIN) as server:
        monkeypatch.setenv("OMNI_R1_HOME", str(server.home))
        assert main(["keys", "add", "ada", "--role", "train", "--running", "4"]) == 0
        key = capsys.readouterr().out.strip()
        assert len(key) >= 43  # 256 bits
        assert main(["keys", "add", "ada", "--role", "read"]) == 2
        assert main(["keys", "add", "A b", "--role", "read"]) == 2
        assert main(["keys", "revoke", "eve"]) == 2
        assert capsys.readouterr().err.count("\n") == 3
        with caplog.at_level(logging.DEBUG):
            forget(server)
            assert (await server.client.get("/v1/jobs", headers=bearer(key))).status_code == 200
            await server.client.post("/login", json={"key": key})
        assert main(["keys", "list", "--json"]) == 0
        out = capsys.readouterr().out
        (listed,) = json.loads(out)
        assert (listed["name"], listed["role"], listed["running"]) == ("ada", "train", 4)
        assert listed["last_used_at"] is not None
        assert main(["keys"]) == 0
        shown = out + capsys.readouterr().out + caplog.text + (await server.client.get("/metrics")).text
        stored = b"".join(path.read_bytes() for path in server.home.glob("omni-r1.db*"))
        assert key not in shown
        assert key.encode() not in stored
        assert main(["keys", "revoke", "ada"]) == 0
        forget(server)
        is_problem(await server.client.get("/v1/jobs", headers=bearer(key)), 401, "wrong_key")


def test_keys_need_a_database_of_this_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMNI_R1_HOME", str(tmp_path))
    assert main(["keys"]) == 2
    assert "start the server once" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "omni-r1.db").touch()
    assert main(["keys"]) == 2
    assert "start this version's server once" in capsys.readouterr().err
