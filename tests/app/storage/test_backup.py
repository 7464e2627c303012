"""Backups of a running server's home, and homes made of them; hostile and damaged archives."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.cli.main import main
from app.storage.backup import BackupError, back_up, restore
from app.storage.database import HEAD
from tests.app.conftest import Server, parse_sse, running
from tests.fakes import FakeGeneration, held, two_steps


async def log_of(server: Server, trace_id: str) -> bytes:
    """The bytes of a trace's events."""
    answer = await server.client.get(f"/v1/traces/{trace_id}/events")
    assert answer.status_code == 200
    return answer.content


async def test_backup_of_a_running_server_restores_every_finished_trace(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, copy, file = tmp_path / "home", tmp_path / "copy", tmp_path / "studio.tar.gz"
    engine = FakeGeneration()
    monkeypatch.setenv("OMNI_R1_HOME", str(home))
    async with running(home, package, engine) as server:
        engine.script = two_steps
        finished = [(await server.finished((await server.create())["id"]))["id"] for _ in range(2)]
        engine.script = held
        live = (await server.create())["id"]
        seen = await server.until(live, "image.completed")
        assert await asyncio.to_thread(main, ["backup", str(file), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        logs = {trace_id: await log_of(server, trace_id) for trace_id in finished}
        images = {one["image"]["url"] for trace_id in finished for one in (await server.get(trace_id))["steps"]}
        engine.go("end")
        await server.finished(live)
    assert await asyncio.to_thread(main, ["restore", str(file), "--home", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert copy.stat().st_mode & 0o777 == 0o700
    async with running(copy, package, FakeGeneration()) as server:
        assert {trace_id: await log_of(server, trace_id) for trace_id in finished} == logs
        for url in images:
            assert (await server.client.get(url)).status_code == 200
        assert (await server.get(live))["status"] == "interrupted"
        kept = b"".join(event.raw for event in seen)
        assert (await log_of(server, live)).startswith(kept)
        assert parse_sse(await log_of(server, live))[-1].type == "trace.failed"


def make_home(folder: Path, schema: str = HEAD) -> Path:
    """A home with one file under two names, and a database."""
    home = folder / "home"
    (home / "jobs" / "a" / "runs").mkdir(parents=True)
    (home / "jobs" / "a" / "runs" / "state.pt").write_bytes(b"state" * 1000)
    os.link(home / "jobs" / "a" / "runs" / "state.pt", home / "jobs" / "a" / "state.pt")
    (home / "empty").mkdir()
    (home / "tmp").mkdir()
    (home / "tmp" / "upload").write_text("not copied")
    (home / "lock").write_text("not copied")
    (home / "elsewhere").symlink_to("/etc")
    connection = sqlite3.connect(home / "omni-r1.db")
    connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    connection.execute("INSERT INTO alembic_version VALUES (?)", (schema,))
    connection.commit()
    connection.close()
    return home


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_links_between_files_and_empty_folders_survive(tmp_path: Path, name: str) -> None:
    home = make_home(tmp_path)
    made = back_up(home, home / "omni-r1.db", tmp_path / name)
    assert (made.files, made.links) == (2, 1)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    copy = tmp_path / "a" / "copy"
    assert restore(tmp_path / name, copy).files == made.files
    found = {path.relative_to(copy).as_posix() for path in copy.rglob("*")}
    assert found == {"jobs", "jobs/a", "jobs/a/runs", "jobs/a/runs/state.pt", "jobs/a/state.pt", "empty", "omni-r1.db"}
    assert (copy / "jobs/a/state.pt").samefile(copy / "jobs/a/runs/state.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "home", name]  # nothing half-made


def rewritten(file: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> Path:
    """The archive with other members."""
    with tarfile.open(file) as tar:
        members = [(m, content.read() if (content := tar.extractfile(m)) else b"") for m in tar.getmembers()]
    change(members)
    other = file.with_name("other.tar")
    with tarfile.open(other, "w") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return other


def hostile(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> Callable[[list[Any]], None]:
    def change(members: list[Any]) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        members.insert(1, (info, b""))

    return change


def without_last(members: list[Any]) -> None:
    members.pop()


def other_bytes(members: list[Any]) -> None:
    at = next(k for k, (member, _) in enumerate(members) if member.name.endswith("state.pt"))
    members[at] = (members[at][0], b"STATE" * 1000)


def other_names(members: list[Any]) -> None:
    info, data = members[-1]
    data = json.dumps(json.loads(data) | {"names": {"../../outside": "omni-r1.db"}}).encode()
    info.size = len(data)
    members[-1] = (info, data)


@pytest.mark.parametrize(
    "change",
    [
        hostile("home/../../outside"),
        hostile("../outside"),
        hostile("/tmp/outside"),
        hostile("home//etc/outside"),
        hostile("home/./outside"),
        hostile("outside"),
        hostile("home/link", tarfile.SYMTYPE, "/etc"),
        hostile("home/link", tarfile.LNKTYPE, "home/omni-r1.db"),
        hostile("home/fifo", tarfile.FIFOTYPE),
        hostile("home/device", tarfile.CHRTYPE),
        hostile("home/omni-r1.db"),
        without_last,
        other_bytes,
        other_names,
        lambda members: members.pop(0),
        lambda members: members.append(members[1]),
    ],
)
def test_hostile_and_damaged_archives_are_refused(tmp_path: Path, change: Callable[[list[Any]], None]) -> None:
    home = make_home(tmp_path)
    back_up(home, home / "omni-r1.db", tmp_path / "x.tar")
    other = rewritten(tmp_path / "x.tar", change)
    with pytest.raises(BackupError) as refused:
        restore(other, tmp_path / "in" / "copy")
    assert "\n" not in str(refused.value)
    assert list((tmp_path / "in").iterdir()) == []
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_truncated_archive_is_refused(tmp_path: Path, share: float) -> None:
    home = make_home(tmp_path)
    for name in ("x.tar", "x.tar.gz"):
        back_up(home, home / "omni-r1.db", tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(BackupError):
            restore(tmp_path / name, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


CASES = ["newer", "full", "exists", "inside", "postgresql", "no home", "no folder", "file as folder", "empty", "text"]


@pytest.mark.parametrize("case", CASES)
def test_refusals_are_one_line_and_exit_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    home = make_home(tmp_path, schema="9999" if case == "newer" else HEAD)
    file = tmp_path / "x.tar"
    monkeypatch.setenv("OMNI_R1_HOME", str(home if case != "no home" else tmp_path / "none"))
    argv = ["backup", str(home / "x.tar" if case == "inside" else file)]
    if case == "exists":
        file.write_text("mine")
    elif case in ("no folder", "file as folder"):
        if case == "file as folder":
            (tmp_path / "nowhere").touch()
        argv = ["backup", str(tmp_path / "nowhere" / "x.tar")]
    elif case in ("empty", "text"):
        file.write_text("" if case == "empty" else "no archive\n" * 99)
        argv = ["restore", str(file), "--home", str(tmp_path / "copy")]
    elif case == "postgresql":
        monkeypatch.setenv("OMNI_R1_DATABASE_URL", "postgresql://u:secret@127.0.0.1/x")
    elif case in ("newer", "full"):
        assert main(argv) == 0
        argv = ["restore", str(file), "--home", str(home if case == "full" else tmp_path / "copy")]
    capsys.readouterr()
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "secret" not in err
    assert ".part" not in err
    if case in ("no folder", "file as folder"):
        assert str(tmp_path / "nowhere") in err
    if case in ("empty", "text"):
        assert err.strip().endswith(f"{file} {'is empty' if case == 'empty' else 'is no backup, or damaged'}")
    if case == "postgresql":
        assert "pg_dump" in err
        assert main([*argv, "--files-only"]) == 0
    if case == "exists":
        assert file.read_text() == "mine"
    assert not (tmp_path / "copy").exists()
