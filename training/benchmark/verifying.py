"""Which checkpoint judges another one's drawings, so that it can choose among candidates."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.manifest import Manifest, nearest_verifier
from model.checkpoint.shards import CheckpointError, find_local
from model.engine.engine import Engine
from model.engine.verifier import OrderVerifier
from training.jobs.context import JobContext, JobError
from training.spec.spec import BenchmarkHyperparameters


def judged_by(loaded: LoadedCheckpoint, verifier: LoadedCheckpoint) -> OrderVerifier:
    """The judge of one checkpoint's drawings by another one, or by itself.

    Raises:
        ValueError: the other one is no verifier, or has other tokens or another codebook.
    """
    if loaded.vq is None or verifier.vq is None or not torch.equal(loaded.vq.codebook, verifier.vq.codebook):
        raise ValueError(f"{verifier.name} cannot judge drawings of {loaded.name}: their codebooks differ")
    engine = Engine(verifier.transformer, verifier.vocab, verifier.template, num_slots=1)
    return OrderVerifier(engine, verifier.template, verifier.manifest.verifier, loaded.template)


def nearest_folder(folder: Path, roots: Iterable[Path]) -> Path:
    """The folder of the verifier that is nearest to a checkpoint: its own, or that of one of its bases in `roots`.

    Raises:
        ValueError: there is none.
    """
    places = {folder.name: folder}

    def manifest(name: str) -> Manifest | None:
        try:
            place = places.get(name) or find_local(name, roots=roots)
        except CheckpointError:
            place = None
        if place is None:
            return None
        places[name] = place
        return Manifest.read(place)

    nearest = nearest_verifier(folder.name, manifest)
    if nearest is None:
        raise ValueError(f"neither {folder.name} nor any of its bases can judge drawings; name a verifier")
    return places[nearest]


def job_verifier(
    ctx: JobContext, hyper: BenchmarkHyperparameters, name: str, loaded: LoadedCheckpoint
) -> OrderVerifier | None:
    """What chooses among a checkpoint's candidates; None without any."""
    if hyper.candidates == 1:
        return None

    def find(wanted: str) -> Path | None:
        made = ctx.folder / "checkpoints" / wanted  # by an earlier stage of a pipeline
        return loaded.folder if wanted == name else ctx.checkpoints.get(wanted) or (made if made.exists() else None)

    def manifest(wanted: str) -> Manifest | None:
        folder = find(wanted)
        return loaded.manifest if wanted == name else None if folder is None else Manifest.read(folder)

    judge = hyper.verifier or nearest_verifier(name, manifest)
    folder = None if judge is None else find(judge)
    if folder is None:
        raise JobError("no_verifier", f"neither {name} nor any of its bases can judge drawings")
    try:
        other = loaded if judge == name else load_checkpoint(folder, device=ctx.device, dtype=loaded.transformer.dtype)
        return judged_by(loaded, other)
    except (CheckpointError, ValueError) as error:
        raise JobError("no_verifier", str(error)) from error
