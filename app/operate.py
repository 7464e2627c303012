"""What an operator does on the server's machine, next to a running server: backup and restore."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from app.common.settings import Settings
from app.storage.backup import BackupError, Report, back_up
from app.storage.backup import restore as restore_home

__all__ = ["BackupError", "Report", "backup", "restore_home"]


def backup(settings: Settings, file: Path, *, files_only: bool = False) -> Report:
    """An archive of the settings' home; raises BackupError, OSError. A database in PostgreSQL has its own tools."""
    url = sa.make_url(settings.sqlalchemy_url)
    if files_only:
        return back_up(settings.home, None, file)
    if url.get_backend_name() != "sqlite":
        raise BackupError(
            "the database is PostgreSQL: dump it with pg_dump, and give --files-only for the home's files"
        )
    return back_up(settings.home, Path(url.database or ""), file)
