"""One database owns a store: copies and others neither start with it nor delete there. One report of each outage."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.cli.main import main
from app.common.settings import Settings, SettingsError, read_settings
from app.main import serve
from app.storage.backup import back_up, restore
from app.storage.mirror import StoreUnusable
from app.store.owner import OWNER
from tests.app.conftest import Server, running
from tests.app.storage.test_mirror import new_mirror, quick, stored, until_sent
from tests.app.store.s3 import S3
from tests.fakes import FakeGeneration, png
from tests.patience import PATIENCE_S

__all__ = ["quick"]

ROOT = Path(__file__).parents[3]


@asynccontextmanager
async def original(tmp_path: Path, package: Path, s3: S3) -> AsyncIterator[Server]:
    """A server whose trace is in the store, with previews."""
    async with running(tmp_path / "home", package, FakeGeneration(), store=s3.url) as server:
        await server.finished((await server.create(partial_images=2))["id"])
        await until_sent(server)
        yield server


def copy_of(server: Server, home: Path) -> Path:
    """A home made of a backup."""
    file = home.with_suffix(".tar")
    back_up(server.home, server.home / "omni-r1.db", file)
    restore(file, home)
    return home


def refusal(home: Path, url: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which a server does not start."""
    capsys.readouterr()
    settings = Settings(home=home, port=0, store=url)
    assert serve(settings, generation=FakeGeneration(), build_ui=None) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


async def refused_start(server: Server, url: str) -> str:
    with pytest.raises(StoreUnusable) as caught:
        await asyncio.to_thread(new_mirror(server, url).begin, server.services.db, server.runtime._home)
    return str(caught.value)


async def until_refused(server: Server) -> str:
    """The server's last error at the store."""
    async with asyncio.timeout(PATIENCE_S):
        while not (error := (await server.client.get("/v1/storage")).json()["store"]["last_error"]):
            await asyncio.sleep(0.02)
    assert "\n" not in error["detail"]
    return str(error["detail"])


async def delete_all(server: Server) -> None:
    for trace in (await server.client.get("/v1/traces")).json()["data"]:
        assert (await server.client.delete(f"/v1/traces/{trace['id']}")).status_code == 204


async def test_restored_copy_does_not_start_on_the_originals_store(
    tmp_path: Path, package: Path, s3: S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.main.logs.configure", lambda *_: None)
    async with original(tmp_path, package, s3) as server:
        before = stored(s3)
        copy, heir = (copy_of(server, tmp_path / name) for name in ("copy", "heir"))
        line = await asyncio.to_thread(refusal, copy, s3.url, capsys)
        for part in ("OMNI_R1_STORE", "another database", "another prefix", f"delete {s3.url}/{OWNER}"):
            assert part in line
        async with running(copy, package, FakeGeneration(), store=f"{s3.url}/copy") as other:
            await until_sent(other)
            assert {f"lab/copy/{name}" for name in before} < s3.objects.keys()
            await delete_all(other)
            await until_sent(other)
        assert stored(s3).items() >= before.items()
        assert not [key for key in s3.objects if key.startswith("lab/copy/partials/")]
    # The original is given up: another copy takes its files over and uploads what the store lacks.
    del s3.objects[f"lab/{OWNER}"]
    lost = next(name for name in before if name.startswith("images/"))
    del s3.objects[f"lab/{lost}"]
    async with running(heir, package, FakeGeneration(), store=s3.url) as other:
        await until_sent(other)
        assert lost in stored(s3)
    assert "another database" in await asyncio.to_thread(refusal, tmp_path / "home", s3.url, capsys)


async def test_copy_of_other_programs_gets_a_new_id_by_the_documented_statement(
    tmp_path: Path, package: Path, s3: S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.main.logs.configure", lambda *_: None)
    async with original(tmp_path, package, s3):
        pass
    copy = shutil.copytree(tmp_path / "home", tmp_path / "copy")
    statements = set(re.findall(r'"(DELETE FROM facts [^"]+)"', (ROOT / "docs" / "backup.md").read_text()))
    (statement,) = statements  # one for both databases
    with contextlib.closing(sqlite3.connect(copy / "omni-r1.db")) as connection, connection:
        assert connection.execute(statement).rowcount == 2
    assert "another database" in await asyncio.to_thread(refusal, copy, s3.url, capsys)


async def test_other_database_is_refused(tmp_path: Path, package: Path, s3: S3) -> None:
    async with original(tmp_path, package, s3), running(tmp_path / "two", package, FakeGeneration(), store=None) as two:
        assert "another database" in await refused_start(two, s3.url)
        s3.objects[f"lab/{OWNER}"] = b"\xff"
        assert "another database" in await refused_start(two, s3.url)


async def test_store_that_is_away_at_the_start_is_checked_before_its_files_change(
    tmp_path: Path, package: Path, s3: S3
) -> None:
    async with original(tmp_path, package, s3) as server:
        await server.crash()
        before = stored(s3)
        s3.down()
        s3.objects[f"lab/{OWNER}"] = b"another"
        await server.start()  # it has used the store before
        await server.image(png((7, 7, 7)))  # neither a deletion nor a folder
        s3.up()
        async with asyncio.timeout(PATIENCE_S):
            while "another database" not in await until_refused(server):
                await asyncio.sleep(0.02)
        assert stored(s3) == before
        assert "object store" in (await server.client.get("/readyz")).json()["detail"]


async def test_running_server_deletes_nothing_once_another_has_taken_over(
    tmp_path: Path, package: Path, s3: S3
) -> None:
    async with original(tmp_path, package, s3) as server:
        before = stored(s3)
        mine, s3.objects[f"lab/{OWNER}"] = s3.objects[f"lab/{OWNER}"], b"another"
        await delete_all(server)
        assert "another database" in await until_refused(server)
        assert stored(s3) == before
        s3.objects[f"lab/{OWNER}"] = mine
        await until_sent(server)
        assert not [name for name in stored(s3) if name.startswith("partials/")]


async def test_store_without_an_owner_is_adopted(tmp_path: Path, package: Path, s3: S3) -> None:
    async with original(tmp_path, package, s3) as server:
        owner = s3.objects.pop(f"lab/{OWNER}")
        await server.crash()
        await server.start()
        assert s3.objects[f"lab/{OWNER}"] == owner


async def test_outage_is_reported_once(tmp_path: Path, package: Path, s3: S3, caplog: pytest.LogCaptureFixture) -> None:
    def lines(level: int) -> list[str]:
        return [one.getMessage() for one in caplog.records if (one.name, one.levelno) == ("omni_r1.store", level)]

    async with original(tmp_path, package, s3) as server:
        name = next(name for name in stored(s3) if name.startswith("images/"))
        for number in range(2):
            caplog.clear()
            with caplog.at_level(logging.INFO, logger="omni_r1.store"):
                shutil.rmtree(server.home / "images", ignore_errors=True)
                s3.down()
                for red in range(6):
                    await server.image(png((red, number, 1)))
                async with asyncio.timeout(PATIENCE_S):
                    while (await server.client.get("/v1/storage")).json()["store"]["failed"] < 20 * (number + 1):
                        await asyncio.sleep(0.02)
                for _ in range(2):
                    url = f"/v1/images/{name.rpartition('/')[2].removesuffix('.png')}"
                    assert (await server.client.get(url)).status_code == 503
                (warning,) = lines(logging.WARNING)
                assert s3.url in warning
                assert lines(logging.INFO) == []
                s3.up()
                await until_sent(server)
                async with asyncio.timeout(PATIENCE_S):
                    while not lines(logging.INFO):
                        await asyncio.sleep(0.02)
                assert lines(logging.INFO) == [f"{s3.url} is back"]
                assert lines(logging.WARNING) == [warning]


@pytest.mark.parametrize("place", [".", "inside", "inside/deeper", "..", "../link"])
def test_store_in_or_around_the_home_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    home = tmp_path / "around" / "home"
    home.mkdir(parents=True)
    (tmp_path / "around" / "link").symlink_to(home)
    folder = home.parent / "link" if place == "../link" else (home / place).resolve()
    monkeypatch.setenv("OMNI_R1_HOME", str(home))
    monkeypatch.setenv("OMNI_R1_STORE", f"file://{folder}")
    with pytest.raises(SettingsError, match=r"^OMNI_R1_STORE must lie outside OMNI_R1_HOME"):
        read_settings()
    monkeypatch.setenv("OMNI_R1_STORE", f"file://{tmp_path}/around/home-store")
    read_settings()


async def test_doctor_finds_what_stops_a_server(
    tmp_path: Path, package: Path, s3: S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from app.cli import doctor

    monkeypatch.setattr(doctor, "_checkpoint", lambda: doctor.Finding("checkpoint", "ok", "not looked at"))

    def found(home: Path, url: str) -> tuple[str, str]:
        monkeypatch.setenv("OMNI_R1_HOME", str(home))
        monkeypatch.setenv("OMNI_R1_STORE", url)
        code = main(["doctor", "--json", "--port", "0"])
        (one,) = (one for one in json.loads(capsys.readouterr().out) if one["check"] == "store")
        assert (code == 1) == (one["state"] == "bad")
        return one["state"], one["detail"]

    async with original(tmp_path, package, s3) as server:
        objects = dict(s3.objects)
        assert (await asyncio.to_thread(found, server.home, s3.url))[0] == "ok"
        for home in (tmp_path / "new", copy_of(server, tmp_path / "copy")):
            state, detail = await asyncio.to_thread(found, home, s3.url)
            assert (state, "another database" in detail) == ("bad", True)
            assert (await asyncio.to_thread(found, home, f"{s3.url}/other"))[0] == "ok"
        assert s3.objects == objects  # it claims nothing
        state, detail = await asyncio.to_thread(found, server.home, "s3://nobucket/x")
        assert (state, "no such bucket" in detail) == ("bad", True)
    s3.down()
    state, detail = await asyncio.to_thread(found, server.home, s3.url)
    assert (state, "does not answer" in detail) == ("bad", True)
