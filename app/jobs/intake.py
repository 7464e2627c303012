"""Validation of a job before it is queued: base checkpoint, data, names of its checkpoints. Blocking.

Errors are :class:`app.contract.problems.Problem` with the field's path. `training.spec.spec` has already validated the
schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection

from app.checkpoints.folder import CheckpointInfo
from app.checkpoints.registry import CheckpointRegistry
from app.common.settings import Settings, lack_of_cluster
from app.contract.problems import Problem, field_problem
from app.contract.words import JOB_TERMINAL
from app.jobs import store
from app.jobs.custom import CustomRules, use_allowed
from app.storage.database import Database
from app.storage.home import Home
from app.storage.images import ImageStore
from app.storage.keys import require
from app.traces.records import store as traces
from app.traces.records.exports import pesft_row
from training.data.hub import HubAddress, is_hub
from training.data.row_images import DataError
from training.jobs.context import JobError
from training.jobs.ranks import devices_found, too_few
from training.spec.spec import (
    MOST_TRACES,
    AnySpec,
    BenchmarkHyperparameters,
    PeRPOHyperparameters,
    PeSFTSpec,
    PipelineSpec,
    ZeroHyperparameters,
)

RESUMABLE = ("cancelled", "failed", "interrupted")
STAGES = ("zero", "pesft", "perpo")  # a pipeline adds these to the names of its checkpoints
FILTERS = ("rating", "tag", "verdict")  # of traces
EXPORT = Path("data") / "traces.jsonl"
PREFIX_LEN = 80  # of a generated name


class JobIntake:
    """Validates the jobs of one server."""

    def __init__(
        self,
        db: Database,
        checkpoints: CheckpointRegistry,
        images: ImageStore,
        *,
        home: Home,
        settings: Settings,
        custom: CustomRules,
    ) -> None:
        self._db = db
        self._checkpoints = checkpoints
        self._images = images
        self._home = home
        self._roots = (home.path, *settings.allowed_roots)
        self.custom = custom
        self._on_cluster = settings.jobs == "ray"  # whose nodes this server does not know
        self._devices = partial(devices_found, settings.device, settings.cpu_ranks)

    async def bring(self, specs: Sequence[AnySpec]) -> None:
        """Fetch the checkpoints they start from or compare with, if only the object store has them."""
        compared = [one.compare_with for spec in specs for _, one in _benchmarks(spec)]
        for name in dict.fromkeys([*(spec.base_checkpoint for spec in specs), *compared]):
            await self._checkpoints.arrivals.bring(name)

    def check(self, spec: AnySpec, job_id: str) -> tuple[dict[str, Any], str]:
        """The spec with all defaults and paths resolved, and the name prefix of its checkpoints."""
        info = self._checkpoints.usable(spec.base_checkpoint, path="body.base_checkpoint")
        _require_images(info, "body.base_checkpoint")
        for path, benchmark in _benchmarks(spec):
            stages = spec.stages if isinstance(spec, PipelineSpec) else ()
            if benchmark.compare_with is not None and benchmark.compare_with not in stages:
                other = self._checkpoints.usable(benchmark.compare_with, path=f"{path}.compare_with")
                if benchmark.candidates > 1:
                    self._checkpoints.verifier(other, benchmark.verifier, path=path)
            if benchmark.candidates > 1:
                self._checkpoints.verifier(info, benchmark.verifier, path=path)
        for path, zero in _zeros(spec):
            if zero.score == "verifier" and not (info.manifest and info.manifest.verifier):
                raise field_problem("no_verifier", f"{path}.score", f"{info.name} was not trained to judge drawings")
        if spec.activate:
            require("admin")
        if spec.activate and not _makes_checkpoint(spec):
            raise field_problem("invalid", "body.activate", "this job creates no checkpoint to activate")
        self._require_devices(spec)
        for path, perpo in _perpos(spec):
            if perpo.rollout_actors and (lack := lack_of_cluster()) is not None:
                raise field_problem("invalid", f"{path}.rollout_actors", f"the server needs {lack}")
        resolved = spec.resolved()
        for keys in _data_parts(spec):
            self._check_data(resolved, ("data", *keys))
        use_allowed(resolved, self.custom, "body.hyperparameters")
        return resolved, self._prefix(spec, job_id)

    def _require_devices(self, spec: AnySpec) -> None:
        asked = spec.num_gpus if isinstance(spec, PeSFTSpec) else 1
        if asked > 1 and not self._on_cluster and (why := too_few(asked, self._devices())) is not None:
            raise field_problem("invalid", "body.num_gpus", why)

    def _check_data(self, resolved: dict[str, Any], keys: Sequence[str]) -> None:
        data = resolved
        for key in keys:
            data = data[key]
        where = ".".join(("body", *keys))
        filters = {name: data[name] for name in FILTERS if data.get(name) is not None}
        # Not part of the spec's validation: a worker's spec has both once the traces are exported.
        if data["source"] == "traces" and sum(map(bool, (data["path"], data["trace_ids"], filters))) > 1:
            raise field_problem("invalid", where, "give only one of path, trace_ids, and filters")
        if data["source"] == "tasks":
            self.custom.family(data["family"], f"{where}.family")
        elif data.get("path") is not None and is_hub(data["path"]):
            _require_address(data["path"], f"{where}.path")
        elif data.get("path") is not None:
            data["path"] = self._home.recorded(self._allowed(data["path"], f"{where}.path"))
        elif filters:
            data |= {"trace_ids": self._matching(filters, data["num_samples"], where), **dict.fromkeys(FILTERS)}
        elif data["source"] == "traces":
            self._check_traces(data["trace_ids"], f"{where}.trace_ids")

    def _allowed(self, given: str, where: str) -> Path:
        if "\0" in given:
            raise field_problem("invalid", where, "must not contain the NUL character")
        path = self._home.resolve(given)
        if not any(path.is_relative_to(root.resolve()) for root in self._roots):
            detail = "is outside OMNI_R1_HOME and OMNI_R1_ALLOWED_ROOTS; move the data or allow its folder"
            raise field_problem("path_not_allowed", where, detail)
        try:
            empty = not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0
        except OSError as error:
            raise field_problem("invalid", where, f"cannot be read: {error.strerror}") from None
        if empty:
            raise field_problem("invalid", where, "is empty")
        return path

    def _check_traces(self, ids: Sequence[str], where: str) -> None:
        with self._db.read() as connection:
            found = traces.briefs(connection, ids)
        for at, trace_id in enumerate(ids):
            brief = found.get(trace_id)
            if brief is None:
                raise field_problem("invalid", f"{where}.{at}", "unknown trace")
            if not brief.is_training_data:
                detail = f"the trace is {brief.status}; only completed traces with an answer can be used"
                raise field_problem("invalid", f"{where}.{at}", detail)

    def _matching(self, filters: Mapping[str, Any], most: int | None, where: str) -> list[str]:
        """The traces that match and can be trained on, newest first, at most `most`."""
        with self._db.read() as connection:
            found = traces.briefs_matching(connection, filters)
        ids = [brief.id for brief in found if brief.is_training_data][:most]
        if not ids:
            raise field_problem("invalid", where, "no completed trace with an answer matches")
        if len(ids) > MOST_TRACES:
            detail = f"{len(ids)} traces match; set num_samples to at most {MOST_TRACES} to take the newest"
            raise field_problem("invalid", where, detail)
        return ids

    def _prefix(self, spec: AnySpec, job_id: str) -> str:
        name = spec.output_name
        if name is None:
            return f"{spec.base_checkpoint[:PREFIX_LEN]}-{spec.method}-{job_id[-4:]}"
        found = next(
            (known for known in self._checkpoints.scan() if known == name or known.startswith(f"{name}-")), None
        )
        if found is not None:
            detail = f"checkpoint {found} exists; delete it or choose another name"
            raise field_problem("invalid", "body.output_name", detail)
        return name

    # ---- at the start

    def describe(self, job_id: str, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Base, spec and known checkpoints for `job.json`; raises :class:`JobError` if something no longer exists."""
        spec = json.loads(json.dumps(spec))
        try:
            info = self._checkpoints.usable(str(spec["base_checkpoint"]), path="base_checkpoint")
            use_allowed(spec, self.custom, "hyperparameters")
        except Problem as problem:
            raise JobError(problem.code, problem.detail) from None
        for data in _traces_to_export(spec["data"]):
            path = folder / EXPORT
            if not path.exists():
                self._export(data["trace_ids"], path)
            data["path"] = str(path)
        scanned = self._checkpoints.scan().items()
        known = {name: self._home.recorded(one.folder) for name, one in scanned if one.problem is None}
        return {
            "id": job_id,
            "spec": spec,
            "base": {"name": info.name, "folder": str(info.folder)},
            "checkpoints": known,
        }

    def _export(self, ids: Sequence[str], path: Path) -> None:
        """Export saved traces as rows in the authors' format."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            for trace_id in ids:
                with self._db.read() as connection:
                    trace = traces.whole(connection, trace_id)
                if trace is None:
                    raise JobError("trace_gone", f"trace {trace_id} was deleted before the job started")
                try:
                    row = pesft_row(trace, self._images.read)
                except (OSError, Problem) as error:
                    raise JobError("trace_gone", f"an image of trace {trace_id} cannot be read: {error}") from None
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        temporary.replace(path)


def _require_address(text: str, path: str) -> None:
    """Reject what is no data set's address; only the job asks the hub."""
    try:
        HubAddress.parse(text)
    except DataError as error:
        raise field_problem("invalid", path, str(error)) from None


def _require_images(info: CheckpointInfo, path: str) -> None:
    """Reject a base that cannot read or generate images: all methods need both."""
    capabilities = info.manifest.capabilities if info.manifest else None
    if capabilities is None or (capabilities.images_in_answer and capabilities.images_in_question):
        return
    lack = "decoder" if capabilities.images_in_question else "encoder"
    raise field_problem("checkpoint_invalid", path, f"{info.name} has no image {lack} (VQ) and cannot be trained")


def _benchmarks(spec: AnySpec) -> Iterator[tuple[str, BenchmarkHyperparameters]]:
    if isinstance(spec.hyperparameters, BenchmarkHyperparameters):
        yield "body.hyperparameters", spec.hyperparameters
    elif isinstance(spec, PipelineSpec) and spec.hyperparameters.benchmark is not None:
        yield "body.hyperparameters.benchmark", spec.hyperparameters.benchmark


def _zeros(spec: AnySpec) -> Iterator[tuple[str, ZeroHyperparameters]]:
    if isinstance(spec.hyperparameters, ZeroHyperparameters):
        yield "body.hyperparameters", spec.hyperparameters
    elif isinstance(spec, PipelineSpec) and spec.hyperparameters.zero is not None:
        yield "body.hyperparameters.zero", spec.hyperparameters.zero


def _perpos(spec: AnySpec) -> Iterator[tuple[str, PeRPOHyperparameters]]:
    if isinstance(spec.hyperparameters, PeRPOHyperparameters):
        yield "body.hyperparameters", spec.hyperparameters
    elif isinstance(spec, PipelineSpec) and spec.hyperparameters.perpo is not None:
        yield "body.hyperparameters.perpo", spec.hyperparameters.perpo


def _makes_checkpoint(spec: AnySpec) -> bool:
    if isinstance(spec, PipelineSpec):
        return bool({"pesft", "perpo"} & set(spec.stages)) or bool(
            spec.hyperparameters.zero is not None and spec.hyperparameters.zero.pesft is not None
        )
    return spec.method != "benchmark" and not (spec.method == "zero" and spec.hyperparameters.pesft is None)


def _data_parts(spec: AnySpec) -> list[tuple[str, ...]]:
    if isinstance(spec, PipelineSpec):
        return [(stage,) for stage in spec.stages if getattr(spec.data, stage) is not None]
    return [()]


def _traces_to_export(data: dict[str, Any]) -> list[dict[str, Any]]:
    parts = [data] if "source" in data else [part for part in data.values() if part]
    return [part for part in parts if part.get("trace_ids") and not part.get("path")]


# ---- names


def require_free(connection: Connection, name: str, server_id: str, is_resumable: Callable[[Any], bool]) -> None:
    """Reject an `output_name` that another job may still use for checkpoints; `is_resumable(row)` for jobs here."""
    for row in store.named(connection, clashing_names(name)):
        if row.status not in JOB_TERMINAL:
            why = f"job {row.id} is {row.status} and uses this name for its checkpoints"
        elif row.server_id != server_id and row.status in RESUMABLE:
            why = f"job {row.id} of another server uses this name and may be resumed"
        elif is_resumable(row):
            why = f"job {row.id} uses this name and can be resumed; delete it first"
        else:
            continue  # it will create no more checkpoints; existing ones are checked separately
        raise field_problem("invalid", "body.output_name", f"{why}, or choose another name")


def clashing_names(name: str) -> list[str]:
    """The output names whose checkpoints may clash with those of `name`: pipelines append their stage."""
    shorter = re.sub(rf"-({'|'.join(STAGES)})$", "", name)
    return [name, *(f"{name}-{stage}" for stage in STAGES), *([shorter] if shorter != name else [])]
