"""Registers LoRA adapters: their files are copied into the home, with a manifest that notes where their base lies.

So a registered adapter needs nothing but its folder and its base, whatever the base is called, wherever it is read: by
the engine, a job or another node.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from app.checkpoints.registry import CheckpointRegistry
from app.checkpoints.table import taken
from app.common import pools
from app.contract.schemas import CHECKPOINT_NAME
from app.storage.database import now
from app.storage.home import Home
from model.checkpoint.atomic import replace_folder, staging_folder, sync_tree
from model.checkpoint.manifest import adapter_manifest
from model.checkpoint.parts import NOTED, WEIGHTS, base_folder, named_base
from model.checkpoint.shards import ADAPTER, HUB_ID, CheckpointError


async def find_base(adapter: Path, registry: CheckpointRegistry, fetch: Callable[[str], Awaitable[Path]]) -> Path:
    """The folder of an adapter's base: of a known checkpoint, of another one on this machine, or fetched from the hub.

    Raises:
        CheckpointError: ``unsupported`` if there is none.
        Problem, CheckpointError: of ``fetch``.
    """
    named = await pools.files.run(named_base, adapter) or ""
    if re.fullmatch(CHECKPOINT_NAME, named):
        await registry.arrivals.bring(named)
        known = await pools.files.run(registry.find, named)
        if known is not None:
            return known.folder.resolve()
    try:
        return await pools.files.run(base_folder, adapter)
    except CheckpointError:
        if HUB_ID.fullmatch(named) is None:
            raise
        return await fetch(named)


def copy_adapter(adapter: Path, base: Path, name: str, home: Home) -> Path:
    """Copy an adapter into the home under a name; its manifest has the hashes of both files. Blocking.

    Raises:
        Problem: ``checkpoint_exists``.
        CheckpointError: the base has no usable manifest.
    """
    target = home.checkpoints.resolve() / name
    if target.exists():
        raise taken(name)
    inside = base.is_relative_to(home.path.resolve())  # which may be moved
    manifest = adapter_manifest(adapter, base, **{NOTED: os.path.relpath(base, target) if inside else str(base)})
    with staging_folder(target) as staging:
        for file in (ADAPTER, WEIGHTS):
            shutil.copyfile(adapter / file, staging / file)
        replace(manifest, name=name, created_at=now()).write(staging)
        sync_tree(staging)
        replace_folder(staging, target)
    return target
