"""Which checkpoints there are, which number their weights carry, and that the engine has them loaded.

A checkpoint's id is its name. Folders come from the package (`model/nano`), from `OMNI_R1_HOME/checkpoints` and from
`OMNI_R1_CHECKPOINT`; only their JSON and safetensors headers are read here. The number (`weight_version`) belongs to
name and content: the same weights keep it across restarts, other weights under the same name take the next one.
Knows no HTTP and no torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app import db as tables
from app.db import Database, get_fact, now, set_fact
from app.errors import Problem, field_problem
from model.config import ConfigError, ModelConfig
from model.engine.messages import EngineError, Generation
from model.manifest import GenerationDefaults, Manifest
from model.shards import CheckpointError, read_entries, resolve
from model.template import Template

log = logging.getLogger("omni_r1.checkpoints")

DEFAULT = "nano-omni-r1"
ACTIVE = "active_checkpoint"
PACKAGE_FOLDER = Path(__file__).resolve().parent.parent / "model" / "nano"


class NoCheckpoint(RuntimeError):
    """There is nothing to serve; one line that says what to do."""


@dataclass(frozen=True)
class CheckpointInfo:
    """One folder, as far as it can be read; `problem` says why it cannot be used."""

    name: str
    folder: Path
    digest: str
    size_bytes: int
    manifest: Manifest | None = None
    config: ModelConfig | None = None
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    problem: str | None = None

    @property
    def context_len(self) -> int:
        return self.config.transformer.context_len if self.config else 0

    @property
    def tokens_per_image(self) -> int:
        """Codes and the two marks around them."""
        return self.config.vq.codes_per_image + 2 if self.config else 0


def read_folder(folder: Path, *, name: str | None = None) -> CheckpointInfo:
    """What a checkpoint folder says of itself; never raises for a bad one."""
    name = name or folder.name
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    try:
        config = ModelConfig.read(folder)
        read_entries(folder)
        manifest = Manifest.read(folder)
        return CheckpointInfo(
            name, folder, _digest(folder, manifest), size, manifest, config, GenerationDefaults.read(folder)
        )
    except CheckpointError as error:
        problem = error.detail
    except (ConfigError, OSError, ValueError, KeyError, TypeError) as error:
        problem = str(error)
    return CheckpointInfo(name, folder, "", size, problem=problem)


def _digest(folder: Path, manifest: Manifest) -> str:
    """Identity of the weights: the manifest's hashes, or names, sizes and times where there are none."""
    facts: Any = manifest.files
    if not facts:
        files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
        facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class CheckpointRegistry:
    """The checkpoints of one installation. Blocking methods are named in the docstrings; call them from threads."""

    def __init__(
        self,
        db: Database,
        generation: Generation,
        *,
        home_folder: Path,
        package_folder: Path = PACKAGE_FOLDER,
        extra: str | None = None,
        roots: tuple[Path, ...] = (),
    ) -> None:
        self._db = db
        self._generation = generation
        self._home_folder = home_folder
        self._package_folder = package_folder
        self._extra = extra
        self._roots = (home_folder, package_folder, *roots)
        self._found: dict[str, CheckpointInfo] = {}
        self._stamp: object = None
        self._templates: dict[str, Template] = {}
        self._versions: dict[str, tuple[str, int]] = {}  # name -> (digest, number) of this run
        self._loading: dict[str, asyncio.Lock] = {}
        self._extra_folder: Path | None = None
        self._extra_name = ""
        self.active: str | None = None

    # ---- what is there

    def scan(self) -> dict[str, CheckpointInfo]:
        """Every checkpoint by name; blocking, and free while no folder has changed."""
        folders = list(self._folders())
        stamp = [(name, str(folder), _changed(folder)) for name, folder in folders]
        if stamp != self._stamp:
            found: dict[str, CheckpointInfo] = {}
            for name, folder in folders:
                if name in found:
                    log.warning("checkpoint %s in %s is hidden by the one in %s", name, folder, found[name].folder)
                    continue
                found[name] = self._read(name, folder)
            self._found, self._stamp = found, stamp
        return self._found

    def _folders(self) -> Iterator[tuple[str, Path]]:
        if self._extra_folder is not None:
            yield self._extra_name, self._extra_folder
        for root in (self._package_folder, self._home_folder):
            if root.is_dir():
                for folder in sorted(root.iterdir()):
                    if not folder.name.startswith((".", "_")) and folder.is_dir() and folder != self._extra_folder:
                        yield folder.name, folder

    def _read(self, name: str, folder: Path) -> CheckpointInfo:
        real = folder.resolve()
        if folder != self._extra_folder and not any(real.is_relative_to(root.resolve()) for root in self._roots):
            return CheckpointInfo(
                name, folder, "", 0, problem=f"{real} lies outside OMNI_R1_HOME and OMNI_R1_ALLOWED_ROOTS"
            )
        return read_folder(folder, name=name)

    def usable(self, name: str | None, *, path: str = "body.checkpoint") -> CheckpointInfo:
        """The checkpoint asked for (None: the active one); blocking; raises :class:`Problem` with the field's path."""
        wanted = name or self.active
        if wanted is None:
            raise Problem("not_ready", "no checkpoint is active yet", headers={"Retry-After": "1"})
        info = self.scan().get(wanted)
        if info is None:
            there = ", ".join(sorted(self._found)) or "none"
            raise field_problem("unknown_checkpoint", path, f"no checkpoint has this name; there are: {there}")
        if info.problem is not None:
            raise field_problem("checkpoint_invalid", path, info.problem)
        return info

    def template(self, info: CheckpointInfo) -> Template:
        """The checkpoint's renderer, read once; blocking."""
        key = f"{info.name}/{info.digest}"
        if key not in self._templates:
            self._templates[key] = Template.read(info.folder)
        return self._templates[key]

    # ---- numbers

    def version_of(self, info: CheckpointInfo) -> int:
        """The number of these weights: theirs from before, or the next one of this installation; blocking."""
        kept = self._versions.get(info.name)
        if kept is not None and kept[0] == info.digest:
            return kept[1]
        loads = tables.weight_loads
        with self._db.write() as connection:
            version = connection.execute(
                sa.select(sa.func.max(loads.c.version)).where(
                    loads.c.checkpoint == info.name, loads.c.digest == info.digest
                )
            ).scalar()
            if version is None:
                added = connection.execute(
                    sa.insert(loads).values(checkpoint=info.name, digest=info.digest, loaded_at=now())
                )
                (version,) = added.inserted_primary_key or (0,)
        self._versions[info.name] = (info.digest, int(version))
        return int(version)

    def known_version(self, name: str) -> int | None:
        """The number `name` carries in this run, if it was asked for."""
        kept = self._versions.get(name)
        return kept[1] if kept else None

    def with_version(self, name: str, version: int) -> CheckpointInfo:
        """The checkpoint whose weights carry that number; blocking; ``weights_gone`` when they are not there."""
        info = self.scan().get(name)
        if info is None or info.problem is not None or self.version_of(info) != version:
            raise Problem(
                "weights_gone",
                f"this trace began with version {version} of {name}, which is not there any more; "
                "ask the question again for a new trace",
            )
        return info

    # ---- start and load

    def choose_active(self) -> CheckpointInfo:
        """Decide which checkpoint answers: the setting's, the one active last, the shipped one; blocking."""
        if self._extra is not None:
            self._take_extra(self._extra)
        found = self.scan()
        with self._db.read() as connection:
            last = get_fact(connection, ACTIVE)
        extra = self._extra_name if self._extra_folder else self._extra
        wanted = extra or last or DEFAULT
        for name in dict.fromkeys((wanted, DEFAULT)):
            info = found.get(name)
            if info is not None and info.problem is None:
                break
            reason = "is not there" if info is None else f"cannot be used: {info.problem}"
            log.warning("checkpoint %s %s", name, reason)
            if name == extra:
                raise NoCheckpoint(f"OMNI_R1_CHECKPOINT={self._extra}: {name} {reason}")
        else:
            shipped = [i for i in found.values() if i.problem is None and i.folder.parent == self._package_folder]
            others = [i for i in found.values() if i.problem is None]
            if not others:
                raise NoCheckpoint(
                    f"no checkpoint can be used: {self._package_folder} holds none; "
                    "clone the repository again or set OMNI_R1_CHECKPOINT"
                )
            info = (shipped or others)[0]
            log.warning("checkpoint %s answers instead of %s", info.name, wanted)
        assert info is not None
        self.active = info.name
        if info.name == wanted:
            with self._db.write() as connection:
                set_fact(connection, ACTIVE, info.name)
        return info

    def _take_extra(self, wanted: str) -> None:
        """`wanted` is a name among the known ones, a folder or a hub id (fetched)."""
        if wanted in self.scan():
            return
        try:
            folder = resolve(wanted)
        except CheckpointError as error:
            raise NoCheckpoint(f"OMNI_R1_CHECKPOINT: {error.detail}") from None
        known = {info.folder.resolve() for info in self._found.values()}
        if folder.resolve() in known:
            self._extra = next(i.name for i in self._found.values() if i.folder.resolve() == folder.resolve())
        else:
            try:
                self._extra_name = Manifest.read(folder).name
            except CheckpointError as error:
                raise NoCheckpoint(f"OMNI_R1_CHECKPOINT: {error.detail}") from None
            self._extra_folder = folder

    async def ensure_loaded(self, info: CheckpointInfo) -> int:
        """Have the engine load the checkpoint unless it has it; its number. Raises :class:`Problem`."""
        version = await asyncio.to_thread(self.version_of, info)
        async with self._loading.setdefault(info.name, asyncio.Lock()):
            if self._generation.status().loaded.get(info.name) == version:
                return version
            try:
                await self._generation.load(info.name, str(info.folder), version)
            except EngineError as error:
                if error.code in ("not_ready", "engine_died"):
                    raise Problem("not_ready", error.detail, headers={"Retry-After": "2"}) from None
                raise field_problem("checkpoint_invalid", "body.checkpoint", error.detail) from None
        return version

    # ---- as the contract shows it

    def as_json(self, info: CheckpointInfo, loaded: Callable[[str], int | None]) -> dict[str, Any]:
        """One entry of `GET /v1/checkpoints`; blocking only for reading folders."""
        manifest, config = info.manifest, info.config
        shown: dict[str, Any] = {
            "id": info.name,
            "name": info.name,
            "active": info.name == self.active,
            "loaded": loaded(info.name) is not None,
            "weight_version": loaded(info.name) or self.known_version(info.name),
            "template": manifest.template if manifest else "",
            "base": manifest.base if manifest else None,
            "licence": (manifest.licence or None) if manifest else None,
            "description": manifest.description if manifest else "",
            "size_bytes": info.size_bytes,
            "created_at": (manifest.created_at or None) if manifest else None,
            "capabilities": vars(manifest.capabilities) if manifest else {},
            "images": vars(manifest.images) if manifest else {"min": 0, "max": 0},
            "context_len": info.context_len,
            "tokens_per_image": info.tokens_per_image,
            "resolution": config.vq.resolution if config else 0,
            "lineage": manifest.lineage if manifest else {},
            "metrics": manifest.extra.get("metrics", {}) if manifest else {},
            "card_notes": manifest.card_notes if manifest else None,
        }
        if info.problem is not None:
            shown["problem"] = info.problem
        return shown


def _changed(folder: Path) -> object:
    """Something that differs when a file of the folder was replaced."""
    try:
        return sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in folder.iterdir() if p.is_file())
    except OSError:
        return None
