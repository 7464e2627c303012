"""Paths in records: relative to the home, so that a copied or moved home finds its own files.

A record outlives its process: a job's row, ``job.json``, ``result.json``, a checkpoint's lineage. In memory paths are
absolute; paths outside the home stay absolute in records, too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

PATH_KEYS = frozenset({"folder", "path", "traces"})  # keys of records whose values are paths
HUB = "hf://"  # begins the address of a data set on the hub, which stays as it is
REPORT = "report"  # key of a record: its paths are relative to the job's folder


def recorded(path: str | Path, home: Path) -> str:
    """The path for records: relative to ``home`` if inside."""
    path = Path(path)
    for root in (home, home.resolve()):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)


def record(value: Any, home: Path) -> Any:
    """Convert a JSON value for records."""
    return _map_paths(value, lambda path: recorded(path, home))


def located(value: Any, job_folder: Path) -> Any:
    """A job's record with absolute paths; ``job_folder`` is ``HOME/jobs/JOB_ID``.

    Records of earlier versions have absolute paths. Those into the job's folder are mapped to its current location.
    """
    home = job_folder.parents[1]
    mark = f"/{job_folder.parent.name}/{job_folder.name}/"

    def locate(text: str) -> str:
        _, inside, rest = text.rpartition(mark)
        return str(job_folder / rest) if inside else str(home / text)

    return _map_paths(value, locate)


def without_old_home(old: Any, new: Any) -> Any:
    """Migrate a record of an earlier version, wherever the home was.

    An absolute path that ends like the relative one of ``new`` becomes that one.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: without_old_home(item, new.get(key)) for key, item in old.items()}
    return new if _ends_alike(old, new) else old


def _ends_alike(old: Any, new: Any) -> bool:
    return isinstance(old, str) and isinstance(new, str) and old.startswith("/") and old.endswith(f"/{new}")


def _map_paths(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {
            key: change(item) if key in PATH_KEYS and _is_path(item) else _map_paths(item, change)
            for key, item in value.items()
            if key != REPORT
        } | ({REPORT: value[REPORT]} if REPORT in value else {})
    if isinstance(value, list | tuple):
        return [_map_paths(item, change) for item in value]
    return value


def _is_path(item: Any) -> bool:
    return isinstance(item, str) and not item.startswith(HUB)
