"""Files of a home in an object store: complete, whole, and there when the home is not."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from app.common.settings import Settings, SettingsError, read_settings
from app.main import serve
from app.storage import mirror as mirror_module
from app.storage import outbox, tables
from app.storage.mirror import StoreMirror, StoreUnusable
from app.store import turns
from app.store.owner import OWNER
from tests.app.conftest import Server, both_databases, is_problem, running
from tests.app.store.s3 import S3
from tests.fakes import FakeGeneration, Wait, png, step_items, two_steps
from tests.patience import PATIENCE_S


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is back is noticed at once."""
    monkeypatch.setattr(mirror_module, "IDLE_S", 0.05)
    monkeypatch.setattr(mirror_module, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(turns, "GIVE_UP_S", 0.2)


async def until_sent(*servers: Server) -> None:
    """Until no server has anything to upload or delete."""
    async with asyncio.timeout(PATIENCE_S):
        for server in servers:
            while True:
                with server.services.db.read() as connection:
                    if not outbox.waiting(connection, server.services.jobs.server_id).tasks:
                        break
                await asyncio.sleep(0.02)


def files(home: Path, *folders: str) -> dict[str, bytes]:
    """The files of a home that belong into the store."""
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for folder in folders or ("images", "partials")
        for path in (home / folder).rglob("*")
        if path.is_file()
    }


def stored(s3: S3) -> dict[str, bytes]:
    return {key.removeprefix("lab/"): data for key, data in s3.objects.items() if key != f"lab/{OWNER}"}


async def body_of(server: Server, url: str) -> bytes:
    answer = await server.client.get(url)
    assert answer.status_code == 200, answer.text
    return answer.content


async def test_everything_shown_is_uploaded_and_read_back(tmp_path: Path, package: Path, s3: S3) -> None:
    async with running(tmp_path / "home", package, FakeGeneration(), store=s3.url) as server:
        trace = await server.finished((await server.create(partial_images=2))["id"])
        await until_sent(server)
        before = files(server.home)
        assert len(before) == 3 + 4  # the question's image and two drawn ones; two previews of each
        assert stored(s3) == before
        for name in before:
            (server.home / name).unlink()
        events = await server.stream(trace["id"])
        urls = [event.data["url"] for event in events if event.type in ("image.partial", "image.completed")]
        assert len(urls) == 6
        for url in [*urls, trace["images"][0]["url"]]:
            await body_of(server, url)
        assert files(server.home) == before
        status = (await server.client.get("/v1/storage")).json()["store"]
        assert (status["url"], status["waiting"], status["uploaded"], status["failed"]) == (s3.url, 0, 7, 0)
        assert status["waiting_since"] is status["last_error"] is None

        assert (await server.client.delete(f"/v1/traces/{trace['id']}")).status_code == 204
        await until_sent(server)
        assert set(stored(s3)) == {name for name in before if name.startswith("images/")}
        swept = server.services.images.sweep(at=datetime.now(UTC) + timedelta(days=2))
        await until_sent(server)
        assert (swept, stored(s3)) == (3, {})


async def test_same_image_is_uploaded_once(tmp_path: Path, package: Path, s3: S3) -> None:
    async with running(tmp_path / "home", package, FakeGeneration(), store=s3.url) as server:
        for _ in range(3):
            image_id = await server.image()
            await until_sent(server)
        assert s3.requests.count(("PUT", f"lab/images/{image_id[:2]}/{image_id}.png")) == 1


@both_databases
async def test_servers_on_one_database_see_each_others_images(
    tmp_path: Path, package: Path, database_url: str, s3: S3
) -> None:
    shared: dict[str, Any] = {"database_url": database_url, "store": s3.url}
    async with (
        running(tmp_path / "one", package, FakeGeneration(), **shared) as one,
        running(tmp_path / "two", package, FakeGeneration(), **shared) as two,
    ):
        trace = await one.finished((await one.create(partial_images=1))["id"])
        await until_sent(one)
        events = await two.stream(trace["id"])
        for event in events:
            if event.type in ("image.partial", "image.completed"):
                assert await body_of(two, event.data["url"]) == await body_of(one, event.data["url"])
        for path in ("film", "export?format=html"):
            assert (await two.client.get(f"/v1/traces/{trace['id']}/{path}")).status_code == 200
        branch = await two.client.post(f"/v1/traces/{trace['id']}/branches", json={"after_step": 1})
        assert branch.status_code == 201, branch.text
        again = await two.client.post("/v1/traces", json={"question": "?", "images": trace["images"][:1]})
        assert again.status_code in (201, 422), again.text
        # One server's sweep deletes the image for all; nobody uploads it again.
        image_id, kept = await one.image(png((9, 9, 9))), trace["images"][0]["image_id"]
        os.utime(one.home / f"images/{kept[:2]}/{kept}.png", (0, 0))
        await until_sent(one, two)
        two.services.images.sweep(at=datetime.now(UTC) + timedelta(days=2))
        await until_sent(one, two)
        assert not [key for key in s3.objects if image_id in key]
        file = one.home / f"images/{image_id[:2]}/{image_id}.png"
        assert file.is_file()  # the other server cannot delete it,
        assert one.services.images.sweep() == 0  # and it may be on its way to a row
        os.utime(file, (0, 0))
        assert one.services.images.sweep() == 1
        assert not file.exists()
        assert (await one.client.get(f"/v1/images/{kept}")).status_code == 200
        is_problem(await two.client.get(f"/v1/images/{image_id}"), 404, "image_not_found")


async def test_store_that_is_down_costs_nothing(tmp_path: Path, package: Path, database_url: str, s3: S3) -> None:
    shared: dict[str, Any] = {"database_url": database_url, "store": s3.url}
    engine = FakeGeneration(
        lambda _request: [*step_items(1, "I look.", png(box=9)), Wait("end"), *two_steps(_request)[-2:]]
    )
    async with (
        running(tmp_path / "one", package, engine, **shared) as one,
        running(tmp_path / "two", package, FakeGeneration(), **shared) as two,
    ):
        running_one = await one.create()
        await one.until(running_one["id"], "step.completed")
        await until_sent(one, two)
        before = set(s3.objects)
        s3.down()
        engine.go("end")
        assert (await one.finished(running_one["id"]))["status"] == "completed"
        image_id = await one.image(png((1, 2, 3), box=7))
        await body_of(one, f"/v1/images/{image_id}")
        answer = await two.client.get(f"/v1/images/{image_id}")
        is_problem(answer, 503, "storage_unavailable")
        assert float(answer.headers["retry-after"]) > 0
        async with asyncio.timeout(PATIENCE_S):
            while not (status := (await one.client.get("/v1/storage")).json()["store"])["last_error"]:
                await asyncio.sleep(0.02)
        assert status["waiting"] == 1
        assert s3.url in status["last_error"]["detail"]
        ready = await one.client.get("/readyz")
        assert (ready.status_code, "object store" in ready.json()["detail"]) == (200, True)
        metrics = (await one.client.get("/metrics")).text
        assert "omni_r1_store_waiting 1.0" in metrics

        s3.up()
        await until_sent(one)
        assert len(set(s3.objects) - before) == 1
        async with asyncio.timeout(PATIENCE_S):
            while (answer := await two.client.get(f"/v1/images/{image_id}")).status_code == 503:
                await asyncio.sleep(0.02)
        assert hashlib.sha256(answer.content).hexdigest() == image_id
        assert "object store" not in (await one.client.get("/readyz")).json()["detail"]


async def test_killed_server_uploads_after_its_restart(tmp_path: Path, package: Path, s3: S3) -> None:
    async with running(tmp_path / "home", package, FakeGeneration(), store=s3.url) as server:
        await until_sent(server)
        s3.gate.clear()  # the uploads begin and never end
        trace = await server.finished((await server.create(partial_images=2))["id"])
        async with asyncio.timeout(PATIENCE_S):
            while not any(method == "PUT" and "partials" in key for method, key in s3.requests):
                await asyncio.sleep(0.02)
        await server.crash()
        s3.down()
        s3.gate.set()
        s3.objects.clear()
        s3.up()
        await server.start()
        await until_sent(server)
        assert stored(s3) == files(server.home)
        assert await server.get(trace["id"]) == trace


@pytest.mark.parametrize("harm", ["truncated", "empty", "other"])
async def test_damaged_copy_is_never_shown(tmp_path: Path, package: Path, s3: S3, harm: str) -> None:
    async with running(tmp_path / "home", package, FakeGeneration(), store=s3.url) as server:
        trace = await server.finished((await server.create(partial_images=1))["id"])
        await until_sent(server)
        for name, data in files(server.home).items():
            (server.home / name).unlink()
            s3.objects[f"lab/{name}"] = {"truncated": data[:-1], "empty": b"", "other": b"x" + data[1:-1]}[harm]
        events = await server.stream(trace["id"])
        for event in events:
            if event.type in ("image.partial", "image.completed"):
                is_problem(await server.client.get(event.data["url"]), 503, "storage_unavailable")
        assert files(server.home) == {}
        # A new upload of the image repairs it.
        image_id = await server.image()
        await until_sent(server)
        assert hashlib.sha256(stored(s3)[f"images/{image_id[:2]}/{image_id}.png"]).hexdigest() == image_id


async def test_slow_store_slows_no_trace(tmp_path: Path, package: Path, database_url: str, s3: S3) -> None:
    shared: dict[str, Any] = {"database_url": database_url, "store": s3.url}
    async with (
        running(tmp_path / "one", package, FakeGeneration(), **shared) as one,
        running(tmp_path / "two", package, FakeGeneration(), **shared) as two,
    ):
        image_ids = [await one.image(png((number, 0, 0))) for number in range(12)]
        await until_sent(one, two)
        s3.requests.clear()
        s3.gate.clear()
        waiting = [asyncio.create_task(two.client.get(f"/v1/images/{image_id}")) for image_id in image_ids]
        async with asyncio.timeout(PATIENCE_S):
            while sum(method == "GET" for method, _ in s3.requests) < turns.AT_ONCE:
                await asyncio.sleep(0.01)
        trace = await two.finished((await two.create())["id"])  # while every turn at the store is taken
        assert trace["status"] == "completed"
        assert not any(task.done() for task in waiting)
        s3.gate.set()
        answers: list[httpx.Response] = await asyncio.gather(*waiting)
        assert [hashlib.sha256(answer.content).hexdigest() for answer in answers] == image_ids


# ---- the start


async def test_home_is_uploaded_when_it_first_has_a_store(tmp_path: Path, package: Path, s3: S3) -> None:
    home = tmp_path / "home"
    async with running(home, package, FakeGeneration(), store=None) as server:
        await server.finished((await server.create(partial_images=1))["id"])
        assert (await server.client.get("/v1/storage")).json()["store"] is None
    for again in (False, True, False):
        async with running(home, package, FakeGeneration(), store=s3.url) as server:
            await until_sent(server)
            assert stored(s3) == files(home)
        if again:  # files made without the store are not forgotten
            async with running(home, package, FakeGeneration(), store=None) as server:
                await server.image(png((5, 5, 5)))


def new_mirror(server: Server, url: str) -> StoreMirror:
    return StoreMirror(url, server.services.db, server.runtime._home)


async def test_start_is_refused_with_one_line(server: Server, s3: S3, tmp_path: Path) -> None:
    async def refusal(url: str) -> str:
        with pytest.raises(StoreUnusable) as caught:
            await asyncio.to_thread(new_mirror(server, url).begin, server.services.db, server.runtime._home)
        text = str(caught.value)
        assert "\n" not in text
        assert "secret" not in text
        assert text.startswith("OMNI_R1_STORE: ")
        return text

    assert "no such bucket" in await refusal("s3://other/lab")
    with s3.refusing(403, "InvalidAccessKeyId"):
        assert "refuses these credentials" in await refusal(s3.url)
    (tmp_path / "file").touch()
    await refusal(f"file://{tmp_path}/file")
    s3.down()
    assert "does not answer" in await refusal(s3.url)


def test_server_that_cannot_use_its_store_exits_with_2(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.main.logs.configure", lambda *_: None)
    cases = (
        ("s3://other/lab", "there is no such bucket"),
        (s3.url, "does not answer"),
        (s3.url, "omni-r1-studio[store]"),
    )
    for number, (store, reason) in enumerate(cases):
        if number == 1:
            s3.down()
        if number == 2:
            monkeypatch.setitem(sys.modules, "obstore", None)
        settings = Settings(home=tmp_path / "home", port=0, store=store)
        assert serve(settings, generation=FakeGeneration(), build_ui=None) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "OMNI_R1_STORE" in line
        assert reason in line


async def test_home_that_knows_its_store_starts_without_it(tmp_path: Path, package: Path, s3: S3) -> None:
    home = tmp_path / "home"
    async with running(home, package, FakeGeneration(), store=s3.url) as server:
        await until_sent(server)
    s3.down()
    async with running(home, package, FakeGeneration(), store=s3.url) as server:
        image_id = await server.image()
        s3.up()
        await until_sent(server)
        assert set(stored(s3)) == {f"images/{image_id[:2]}/{image_id}.png"}


@pytest.mark.parametrize(
    "url", ["s3://", "studio", "ftp://studio/lab", "s3://a/../b", "s3://a//b", "s3://A", "file://a"]
)
def test_malformed_stores_are_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OMNI_R1_STORE", url)
    with pytest.raises(SettingsError, match=r"^OMNI_R1_STORE: not a store; use s3://bucket/prefix"):
        read_settings()


@pytest.mark.parametrize("url", ["s3://studio", "s3://my.studio-1/a/b_c/d.e", "file:///srv/studio"])
def test_stores_end_without_a_slash(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OMNI_R1_STORE", f"{url}/")
    assert read_settings().store == url


# ---- the outbox


@both_databases
async def test_uploads_wait_for_deletions_of_the_same_path(server: Server) -> None:
    db = server.services.db

    def tasks(server_id: str) -> list[tuple[str, bool]]:
        with db.read() as connection:
            found = outbox.tasks(connection, server_id, trees=False, limit=9)
            return [(task.path, task.drop) for task in found]

    with db.write() as connection:
        outbox.put(connection, "one", "images/a.png")
        outbox.put(connection, "one", "images/a.png")
        outbox.put(connection, "two", "images/a.png")
        outbox.put(connection, "two", "images/b.png")
    assert tasks("one") == [("images/a.png", False)]
    with db.write() as connection:
        outbox.drop(connection, "one", "images/a.png")
    assert tasks("two") == [("images/b.png", False)]
    with db.write() as connection:
        outbox.put(connection, "two", "images/a.png")
    assert tasks("one") == [("images/a.png", True)]
    assert tasks("two") == [("images/b.png", False)]
    with db.write() as connection:  # the first server never returns
        connection.execute(sa.update(tables.outbox).values(created_at="2020-01-01T00:00:00.000Z"))
    assert ("images/a.png", True) in tasks("two")
    with db.write() as connection:
        drops = sa.select(tables.outbox.c.id).where(tables.outbox.c.drop)
        outbox.done(connection, list(connection.execute(drops).scalars()))
    assert tasks("two") == [("images/b.png", False), ("images/a.png", False)]


@both_databases
async def test_done_task_leaves_the_one_that_replaced_it(server: Server) -> None:
    with server.services.db.write() as connection:
        outbox.put(connection, "one", "images/a.png")
        (begun,) = outbox.tasks(connection, "one", trees=False, limit=9)
        outbox.put(connection, "one", "images/a.png")
        outbox.done(connection, [begun.id])
        assert len(outbox.tasks(connection, "one", trees=False, limit=9)) == 1


async def test_deletion_of_previews_ends_their_uploads(server: Server) -> None:
    with server.services.db.write() as connection:
        for path in ("partials/t1/1-0.png", "partials/t10/1-0.png", "jobs/j/checkpoints/c/"):
            outbox.put(connection, "one", path)
        outbox.drop(connection, "one", "partials/t1/", deep=True)
        outbox.drop(connection, "one", "jobs/j/")
        files_, trees = (outbox.tasks(connection, "one", trees=trees, limit=9) for trees in (False, True))
        assert [(task.path, task.drop) for task in files_] == [("partials/t10/1-0.png", False), ("partials/t1/", True)]
        assert [(task.path, task.drop) for task in trees] == [("jobs/j/checkpoints/c/", False), ("jobs/j/", True)]
