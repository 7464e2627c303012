"""Installed packages that add rewards and task families, as folders for the import path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_package(
    folder: Path,
    *,
    rewards: Mapping[str, str] | None = None,
    tasks: Mapping[str, str] | None = None,
    name: str = "mine",
    version: str = "1.0",
) -> Path:
    """Write the metadata of a package with these entry points, ``{name: "module:attribute"}``; returns the folder."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = {"omni_r1.rewards": rewards or {}, "omni_r1.tasks": tasks or {}}
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    return folder
