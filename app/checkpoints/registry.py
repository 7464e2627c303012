"""The known checkpoints, their weight versions, and which one is active.

A checkpoint's id is its name. Folders come from the package (`model/nano`), `OMNI_R1_HOME/checkpoints`,
`OMNI_R1_CHECKPOINT` and the table `checkpoints` (written by jobs or registered); only their JSON and safetensors
headers are read here. `weight_version` belongs to name and content: the same weights keep it across restarts, other
weights under the same name get the next one. Knows no HTTP and no torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.checkpoints import table
from app.checkpoints.arrivals import Arrivals
from app.checkpoints.folder import CheckpointInfo, Record, Source
from app.checkpoints.pool import EnginePool, Lease
from app.checkpoints.reader import FolderReader, Place
from app.checkpoints.templates import Templates
from app.common import pools
from app.contract.problems import Problem, field_problem
from app.storage import tables
from app.storage.database import Database, get_fact, now, set_fact
from app.storage.mirror import Mirror
from model.checkpoint.manifest import Manifest, nearest_verifier
from model.checkpoint.shards import SHIPPED, CheckpointError, find_local, require_plain_files
from training.home_paths import recorded

log = logging.getLogger("omni_r1.checkpoints")

DEFAULT = "nano-omni-r1"
ACTIVE = "active_checkpoint"


class NoCheckpoint(RuntimeError):
    """No checkpoint can be served; the message is one line with a remedy."""


class CheckpointRegistry:
    """The checkpoints of one installation. Methods documented as blocking belong in threads."""

    def __init__(
        self,
        db: Database,
        pool: EnginePool,
        *,
        home: Path,
        server_id: Callable[[], str],
        package_folder: Path = SHIPPED,
        extra: str | None = None,
        roots: tuple[Path, ...] = (),
        context: int | None = None,
        fetch: Callable[[str], Awaitable[Path]],
        mirror: Mirror | None = None,
    ) -> None:
        """`home` is OMNI_R1_HOME; `roots` are further allowed folders; `fetch` downloads a hub id.

        `context` replaces every checkpoint's longest context.
        """
        self._db = db
        self._server_id = server_id
        self.pool = pool
        self._home = home
        self.roots = (home, *roots)
        self._home_folder = home / "checkpoints"
        self._package_folder = package_folder
        self._extra = extra
        self._fetch = fetch
        self.mirror = mirror or Mirror()
        self.arrivals = Arrivals(self.mirror, self.find)
        self.reader = FolderReader(self.roots, package_folder, context=context, mirror=self.mirror)
        self._hidden: set[tuple[str, Path]] = set()  # already logged
        self.template = Templates().of  # its prompt template; blocking
        self._versions: dict[str, tuple[str, int]] = {}  # name -> (digest, version) of this run
        self._extra_folder: Path | None = None
        self._extra_name = ""
        self._wanted = DEFAULT  # the checkpoint to start with
        self.note: str | None = None  # why another checkpoint is active

    # ---- lookup

    def scan(self) -> dict[str, CheckpointInfo]:
        """All checkpoints by name; blocking. Unchanged folders are not read again."""
        found: dict[str, CheckpointInfo] = {}
        for place in self._places():
            first = found.get(place.name)
            if first is None:
                found[place.name] = self._read(place)
            elif first.folder != place.folder and (place.name, place.folder) not in self._hidden:
                self._hidden.add((place.name, place.folder))
                log.warning("checkpoint %s in %s is shadowed by the one in %s", place.name, place.folder, first.folder)
        self.reader.keep(found.values())
        return found

    def find(self, name: str) -> CheckpointInfo | None:
        """One checkpoint, without scanning the others; blocking."""
        place = next(self._places(name), None)
        return None if place is None else self._read(place)

    def _places(self, only: str | None = None) -> Iterator[Place]:
        """Folders by name, in order of precedence; `only` restricts them to one name."""
        if self._extra_folder is not None and only in (None, self._extra_name):
            yield Place(self._extra_name, self._extra_folder, "setting")
        with self._db.read() as connection:
            records = {record.name: record for record in table.rows(connection, only)}
        sources: tuple[tuple[Source, Path], ...] = (("package", self._package_folder), ("home", self._home_folder))
        for source, root in sources:
            for folder in _folders(root, only):
                if folder != self._extra_folder:
                    record = records.get(folder.name)
                    same = record is not None and (self._home / record.folder).resolve() == folder.resolve()
                    yield Place(folder.name, folder, source, record if same else None)
        for record in records.values():
            yield Place(record.name, self._home / record.folder, record.source, record)

    def _read(self, place: Place) -> CheckpointInfo:
        return replace(self.reader.read(place), served_context=self.pool.served_context(place.name))

    def adapter_of(self, base: CheckpointInfo) -> str | None:
        """The name of an adapter of this checkpoint; blocking."""
        folder = base.folder.resolve()
        return next((i.name for i in self.scan().values() if folder in (o.resolve() for o in i.others)), None)

    def usable(self, name: str | None, *, path: str = "body.checkpoint") -> CheckpointInfo:
        """The requested checkpoint (None: the active one); blocking; raises :class:`Problem` for the field `path`."""
        wanted = name or self.active
        if wanted is None:
            raise Problem("not_ready", "no checkpoint is active yet", headers={"Retry-After": "1"})
        info = self.find(wanted)
        if info is None:
            there = ", ".join(sorted(self.scan())) or "none"
            raise field_problem("unknown_checkpoint", path, f"no checkpoint has this name; known checkpoints: {there}")
        if info.problem is not None:
            problem = field_problem("checkpoint_invalid", path, info.problem)
            problem.members["reason"] = info.reason
            raise problem
        return info

    def nearest_verifier(self, info: CheckpointInfo) -> str | None:
        """The checkpoint that judges another one's drawings: itself, or one of its bases; None: no one. Blocking."""

        def manifest(wanted: str) -> Manifest | None:
            found = info if wanted == info.name else self.find(wanted)
            return None if found is None or found.problem is not None else found.manifest

        return nearest_verifier(info.name, manifest)

    def verifier(self, info: CheckpointInfo, name: str | None, *, path: str) -> CheckpointInfo:
        """The checkpoint `name` that is to judge another one's drawings, None for the nearest; blocking.

        Raises :class:`Problem` for the field `path`, `no_verifier` if it cannot judge.
        """
        wanted = name or self.nearest_verifier(info)
        if wanted is None:
            detail = f"neither {info.name} nor any of its bases was trained to judge drawings; name a verifier"
            raise field_problem("no_verifier", f"{path}.candidates", detail)
        judge = info if wanted == info.name else self.usable(wanted, path=f"{path}.verifier")
        if judge.manifest is None or not judge.manifest.verifier:
            raise field_problem("no_verifier", f"{path}.verifier", f"{name} was not trained to judge drawings")
        return judge

    def register_job_checkpoint(
        self,
        name: str,
        folder: Path,
        base: str,
        job_id: str,
        stage: str | None,
        step: int | None,
        metrics: Mapping[str, Any],
    ) -> None:
        """Register a folder under its name; repeating it only updates the metrics. Blocking."""
        record = Record(name, recorded(folder, self._home), base, job_id, stage, step, dict(metrics), "job", now())
        with self._db.write() as connection:
            table.put(connection, record)
            self.mirror.put(connection, folder)

    # ---- weight versions

    def version_of(self, info: CheckpointInfo) -> int:
        """The version of these weights: the known one, or the installation's next; blocking."""
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
        """The version of `name` in this run, if known."""
        kept = self._versions.get(name)
        return kept[1] if kept else None

    def with_version(self, name: str, version: int) -> CheckpointInfo:
        """The checkpoint with that weight version; blocking; ``weights_gone`` if it no longer exists."""
        info = self.find(name)
        if info is None or info.problem is not None or self.version_of(info) != version:
            raise Problem(
                "weights_gone",
                f"this trace started with version {version} of {name}, which no longer exists; create a new trace",
            )
        return info

    # ---- serving

    @property
    def active(self) -> str | None:
        """The default checkpoint of requests."""
        return self.pool.pinned

    async def lend(self, name: str | None) -> tuple[CheckpointInfo, Lease]:
        """The requested checkpoint (None: the active one), loaded; raises :class:`Problem`."""
        await self.arrivals.bring(name or self.active)
        while True:
            info = await pools.reads.run(self.usable, name)
            try:
                lease = await self.lend_this(info)
            except Problem:
                if name is None and self.active != info.name:
                    continue  # another one was activated meanwhile
                raise
            if name is not None or self.active == info.name:
                return self._served(info), lease
            lease.release()

    async def lend_row(self, name: str, version: int) -> tuple[CheckpointInfo, Lease]:
        """The checkpoint with a weight version, loaded; raises as `with_version` and `lend_this`."""
        await self.arrivals.bring(name)
        info = await pools.intake.run(self.with_version, name, version)
        lease = await self.lend_this(info)
        return self._served(info), lease

    def _served(self, info: CheckpointInfo) -> CheckpointInfo:
        return replace(info, served_context=self.pool.served_context(info.name))

    async def lend_this(self, info: CheckpointInfo) -> Lease:
        """The given checkpoint, loaded; raises :class:`Problem`."""
        return await self.pool.borrow(info, await pools.writes.run(self.version_of, info))

    async def lend_verifier(self, verify: Mapping[str, Any] | None, lease: Lease) -> None:
        """Load the verifier that a trace's row names, and hold it with the trace's lease; raises :class:`Problem`."""
        if verify is not None and verify["verifier"] != lease.name:
            await self.arrivals.bring(verify["verifier"])
            info = await pools.reads.run(self.usable, verify["verifier"])
            lease.include(await self.lend_this(info))

    def remember(self, name: str) -> None:
        """Make it the active checkpoint of the next start; blocking."""
        with self._db.write() as connection:
            set_fact(connection, self._active_fact(), name)

    def _active_fact(self) -> str:
        """Servers that share a database but not a home have separate active checkpoints."""
        return f"{ACTIVE}:{self._server_id()}"

    # ---- start

    async def choose(self) -> list[CheckpointInfo]:
        """Candidates for the active checkpoint, best first; the first becomes active.

        These are the configured one (fetched if it is a hub id), the last active one, the shipped one, and the others.

        Raises:
            NoCheckpoint: none is usable, or OMNI_R1_CHECKPOINT is not.
        """
        if self._extra is not None:
            await self._take_extra(self._extra)
        elif (last := await pools.files.run(self._last_active)) is not None:
            with contextlib.suppress(Problem):  # the log says why; another one is active
                await self.arrivals.bring(last, patient=True)
        candidates = await pools.files.run(self._candidates)
        self.pool.pinned = candidates[0].name
        return candidates

    async def start(self, candidates: list[CheckpointInfo]) -> tuple[CheckpointInfo, int]:
        """Load the first loadable candidate; returns it with its version.

        Raises:
            NoCheckpoint: none can be loaded, or OMNI_R1_CHECKPOINT cannot.
        """
        rejected = None
        for info in candidates:
            self.pool.pinned = info.name
            version = await pools.writes.run(self.version_of, info)
            try:
                await self.pool.load_first(info, version)
            except Problem as problem:
                if problem.code != "checkpoint_invalid" or self._extra is not None:
                    raise NoCheckpoint(f"checkpoint {info.name} cannot be loaded: {problem.detail}") from None
                log.warning("checkpoint %s cannot be used: %s", info.name, problem.detail)
                rejected = problem
                continue
            if info.name != self._wanted:
                self.note = f"checkpoint {info.name} is active because {self._wanted} cannot be used"
                log.warning("%s", self.note)
            elif self._extra is not None:
                await pools.writes.run(self.remember, info.name)
            return info, version
        raise NoCheckpoint(f"no checkpoint can be loaded: {rejected.detail if rejected else 'none found'}")

    def _candidates(self) -> list[CheckpointInfo]:
        found = self.scan()
        extra = self._extra_name if self._extra_folder else self._extra
        wanted = extra or self._last_active() or DEFAULT
        info = found.get(wanted)
        if info is None or info.problem is not None:
            reason = "is missing" if info is None else f"cannot be used: {info.problem}"
            log.warning("checkpoint %s %s", wanted, reason)
            if extra:
                raise NoCheckpoint(f"OMNI_R1_CHECKPOINT={self._extra}: {wanted} {reason}")
        usable = [info for info in found.values() if info.problem is None]
        if not usable:
            raise NoCheckpoint(
                f"no checkpoint can be used: {self._package_folder} contains none; "
                "clone the repository again or set OMNI_R1_CHECKPOINT"
            )
        order = {wanted: 0, DEFAULT: 1}
        self._wanted = wanted
        return sorted(usable, key=lambda info: order.get(info.name, 2 if info.source == "package" else 3))

    def _last_active(self) -> str | None:
        with self._db.read() as connection:
            return get_fact(connection, self._active_fact()) or get_fact(connection, ACTIVE)  # key of earlier versions

    async def _take_extra(self, wanted: str) -> None:
        """`wanted` is a known name, a folder or a hub id."""
        try:
            await self.arrivals.bring(wanted, patient=True)
            if not await pools.files.run(self._find_extra, wanted):
                await pools.files.run(self._adopt, await self._fetch(wanted))
        except (CheckpointError, Problem) as error:
            raise NoCheckpoint(f"OMNI_R1_CHECKPOINT: {error.detail}") from None

    def _find_extra(self, wanted: str) -> bool:
        """Look for `wanted` on this machine; returns whether it was found."""
        if wanted in self.scan():
            return True
        folder = find_local(wanted)
        if folder is not None:
            self._adopt(folder)
        return folder is not None

    def _adopt(self, folder: Path) -> None:
        """Serve the configured folder, under its name if that is known."""
        same = next((i.name for i in self.scan().values() if i.folder.resolve() == folder.resolve()), None)
        if same is not None:
            self._extra = same
        else:
            require_plain_files(folder)
            self._extra_name, self._extra_folder = Manifest.read(folder).name, folder
            self.reader.setting = folder


def _folders(root: Path, only: str | None) -> Iterator[Path]:
    """The checkpoint folders in `root`, or the one with that name."""
    if only is not None:
        candidates = [root / only] if "/" not in only else []
    else:
        candidates = sorted(root.iterdir()) if root.is_dir() else []
    # os.path.isdir is False for impossible names; Path.is_dir raises
    return (folder for folder in candidates if not folder.name.startswith((".", "_")) and os.path.isdir(folder))
