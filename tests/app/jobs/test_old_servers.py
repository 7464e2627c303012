"""Servers in a database of an earlier version."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.jobs import store as job_store
from app.jobs.servers import ServerWatch
from app.storage.database import MIGRATIONS, Database
from app.traces.records import store
from tests.app.jobs.test_servers import insert_trace


def upgrade_to(database: Database, revision: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database._engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_servers_of_an_old_database_expire(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").new(migrated=False)
    db = Database(url)
    upgrade_to(db, "0002")
    insert_trace(db, "a", "gone")
    insert_trace(db, "b", "here")
    columns = "id, server_id, status, method, gpu, base_checkpoint, spec, output_prefix, metrics, attempt"
    with db.write() as connection:
        connection.exec_driver_sql(
            f"INSERT INTO jobs ({columns}, cancel_requested, log_offset, created_at) VALUES "
            "('j', 'gone', 'running', 'pesft', 'shared', 'b', '{}', 'p', '{}', 1, false, 0, 't')"
        )
    db.migrate()
    now_ = time.time() + 31
    monkeypatch.setattr("app.jobs.servers.clock", lambda: sa.literal(now_, sa.Double()))
    watch = ServerWatch(db, lambda: "here", dead_after_s=30.0)
    for _ in range(3):
        watch.beat()
    with db.read() as connection:
        assert store.statuses(connection, "ab") == {"a": "interrupted", "b": "running"}
        job = job_store.get_row(connection, "j")
    assert job is not None
    assert (job.status, job.unsettled) == ("interrupted", True)
    db.close()
