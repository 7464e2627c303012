"""The API's JSON of a checkpoint."""

from __future__ import annotations

from typing import Any

from app.checkpoints.folder import IN_STORE, CheckpointInfo
from app.checkpoints.registry import CheckpointRegistry


def as_json(info: CheckpointInfo, registry: CheckpointRegistry) -> dict[str, Any]:
    """One entry of `GET /v1/checkpoints`, including its job's lineage and metrics."""
    manifest, record = info.manifest, info.record
    version = registry.pool.loaded_version(info.name)
    lineage = dict(manifest.lineage) if manifest else {}
    metrics = dict(manifest.extra.get("metrics") or {}) if manifest else {}
    base = manifest.base if manifest else None
    if record is not None:
        base = record.base or base
        made = {"job_id": record.job_id, "stage": record.stage, "step": record.step}
        lineage |= {key: value for key, value in made.items() if value is not None}
        metrics |= record.metrics
    shown: dict[str, Any] = {
        "id": info.name,
        "name": info.name,
        "active": info.name == registry.active,
        "loaded": version is not None,
        "weight_version": version or registry.known_version(info.name),
        "quant": None if version is None else registry.pool.quant,
        "template": manifest.template if manifest else "",
        "base": base,
        "licence": (manifest.licence or None) if manifest else None,
        "description": manifest.description if manifest else "",
        "size_bytes": info.size_bytes,
        "created_at": ((manifest.created_at if manifest else "") or (record.created_at if record else "")) or None,
        "capabilities": vars(manifest.capabilities) if manifest else {},
        "images": vars(manifest.images) if manifest else {"min": 0, "max": 0},
        "context_len": info.context_len,
        "tokens_per_image": info.tokens_per_image,
        "resolution": info.resolution,
        "lineage": lineage,
        "metrics": metrics,
        "card_notes": manifest.card_notes if manifest else None,
        "source": info.source,
        "folder": str(info.folder),
    }
    if info.reason == IN_STORE:
        shown["in_store"] = True
    elif info.problem is not None:
        shown["problem"] = info.problem
    return shown
