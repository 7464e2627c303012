"""Reads the folders of checkpoints, each anew only after it or its base has changed. Blocking; knows no database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from app.checkpoints.folder import (
    CheckpointInfo,
    Record,
    Source,
    changed,
    hub_root,
    in_store,
    outside,
    read_folder,
    read_within,
    refused,
)
from app.storage.mirror import Mirror
from model.checkpoint.parts import is_adapter


@dataclass(frozen=True)
class Place:
    """A name and its folder."""

    name: str
    folder: Path
    source: Source
    record: Record | None = None


class FolderReader:
    """The folders that one server has read."""

    def __init__(self, roots: tuple[Path, ...], package_folder: Path, *, context: int | None, mirror: Mirror) -> None:
        """`roots` may be read, and `package_folder`; `context` replaces every checkpoint's longest context."""
        self._roots = (*roots, package_folder)
        self._context = context
        self._mirror = mirror
        self._before: dict[Path, tuple[object, CheckpointInfo]] = {}
        self.setting: Path | None = None  # the folder of OMNI_R1_CHECKPOINT, which may be anywhere

    def read(self, place: Place) -> CheckpointInfo:
        """The checkpoint at a place."""
        folder, stamp = place.folder, changed(place.folder)
        before = self._before.get(folder)
        if before is None or before[0] != [stamp, *map(changed, before[1].others)] or _may_find_its_base(before[1]):
            info = self._read(place)
            before = self._before[folder] = ([stamp, *map(changed, info.others)], info)
        return replace(before[1], name=place.name, source=place.source, record=place.record)

    def keep(self, found: Iterable[CheckpointInfo]) -> None:
        """Forget all folders but these."""
        before = self._before  # other threads read, too
        self._before = {i.folder: before[i.folder] for i in found if i.folder in before}

    def outside(self, base: Path) -> Path | None:
        """The first path in the folder of an adapter's base that this server may not read."""
        hub = hub_root(base)
        known = [folder for folder in (self.setting, hub if hub != base else None) if folder is not None]
        return outside(base, (*self._roots, *known))

    def _read(self, place: Place) -> CheckpointInfo:
        if place.record is not None and self._mirror.has_folder(place.folder):
            return in_store(place.folder)
        if place.source == "setting":
            return read_folder(place.folder, context=self._context)
        roots = (hub_root(place.folder),) if place.source == "hub" else self._roots
        info = read_within(place.folder, roots, context=self._context)
        forbidden = next(filter(None, map(self.outside, info.others)), None)
        return info if forbidden is None else refused(info.folder, forbidden)


def _may_find_its_base(info: CheckpointInfo) -> bool:
    return info.problem is not None and is_adapter(info.folder)
