"""Upgrades from every earlier schema version keep all rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from app.storage.database import HEAD, MIGRATIONS, Database

CONFIG = Config()
CONFIG.set_main_option("script_location", str(MIGRATIONS))
VERSIONS = sorted(script.revision for script in ScriptDirectory.from_config(CONFIG).walk_revisions())


def value(column: sa.Column[Any]) -> Any:
    """A value that fits the column; texts are identical, so that foreign keys match."""
    kind = column.type
    if isinstance(kind, sa.JSON):
        return {}
    if isinstance(kind, (sa.Integer, sa.Float, sa.Boolean)):
        return 1
    if isinstance(kind, sa.LargeBinary):
        return b"x"
    if column.name.endswith("_at"):
        return "2026-01-01T00:00:00.000Z"
    return "{}" if column.name in ("data", "spec", "metrics", "params", "config") else "x"


def counts(connection: Connection) -> dict[str, int]:
    names = sa.inspect(connection).get_table_names()
    return {name: connection.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar_one() for name in names}


@pytest.mark.parametrize("version", VERSIONS)
def test_upgrade_keeps_every_row(version: str, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'old.db'}")
    with database.write() as connection:
        CONFIG.attributes["connection"] = connection
        command.upgrade(CONFIG, version)
        old = sa.MetaData()
        old.reflect(connection)
        for table in old.sorted_tables:
            if not table.name.startswith("alembic"):
                connection.execute(sa.insert(table).values({column.name: value(column) for column in table.columns}))
        before = counts(connection)
    assert all(before.values())
    database.migrate()
    with database.read() as connection:
        after = counts(connection)
    assert {name: after[name] for name in before} == before
    database.close()


def test_newest_migration_is_the_schema_of_this_program() -> None:
    assert VERSIONS[-1] == HEAD
