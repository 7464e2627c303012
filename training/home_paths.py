"""Paths as records keep them: relative to the home, so that a home that was copied or moved finds its own files.

A record is anything that outlives a process: a job's row, ``job.json``, ``result.json``, the lineage of a checkpoint.
In memory paths are absolute. What lies outside the home stays absolute in records, too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

PATH_KEYS = frozenset({"folder", "path", "traces"})  # of records whose values are paths
REPORT = "report"  # of a record: for readers, its paths are relative to the job's folder


def recorded(path: str | Path, home: Path) -> str:
    """The path as records keep it: relative to ``home`` if it lies in it."""
    path = Path(path)
    for root in (home, home.resolve()):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)


def record(value: Any, home: Path) -> Any:
    """A JSON value with its paths as records keep them."""
    return _map_paths(value, lambda path: recorded(path, home))


def located(value: Any, job_folder: Path) -> Any:
    """A record of a job with absolute paths; ``job_folder`` is ``HOME/jobs/JOB_ID``.

    Records of earlier versions hold absolute paths. Those into the job's folder lead to where that folder is now.
    """
    home = job_folder.parents[1]
    mark = f"/{job_folder.parent.name}/{job_folder.name}/"

    def locate(text: str) -> str:
        _, inside, rest = text.rpartition(mark)
        return str(job_folder / rest) if inside else str(home / text)

    return _map_paths(value, locate)


def without_old_home(old: Any, new: Any) -> Any:
    """A record of an earlier version as this one keeps it: an absolute path that ends like the relative one of ``new``
    becomes that one, wherever the home was then."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: without_old_home(item, new.get(key)) for key, item in old.items()}
    return new if _ends_alike(old, new) else old


def _ends_alike(old: Any, new: Any) -> bool:
    return isinstance(old, str) and isinstance(new, str) and old.startswith("/") and old.endswith(f"/{new}")


def _map_paths(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {
            key: change(item) if key in PATH_KEYS and isinstance(item, str) else _map_paths(item, change)
            for key, item in value.items()
            if key != REPORT
        } | ({REPORT: value[REPORT]} if REPORT in value else {})
    if isinstance(value, list | tuple):
        return [_map_paths(item, change) for item in value]
    return value
