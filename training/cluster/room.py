"""What a job needs of a Ray cluster, and what it waits for. Imports Ray only to ask the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any


def needs_of(spec: Mapping[str, Any], device: str, *, has_gpus: bool) -> dict[str, float]:
    """The resources of one node that a job takes: a CPU for each thread of each rank, and a GPU for each rank.

    Args:
        spec: of the job, with ``threads`` and perhaps ``num_gpus``.
        device: as in the settings; ``auto`` is a GPU where the cluster has any now.
        has_gpus: whether it has.
    """
    ranks = int(spec.get("num_gpus") or 1)
    needs = {"CPU": float(ranks * int(spec.get("threads") or 1))}
    if device == "cuda" or (device == "auto" and has_gpus):
        needs["GPU"] = float(ranks)
    return needs


def lacking_room(
    needs: Mapping[str, float], free: Mapping[str, float], nodes: Sequence[Mapping[str, float]]
) -> str | None:
    """What a job that has not started waits for; None if there is room, so that it starts.

    Args:
        needs: of the job, on one node.
        free: what the cluster has free of each kind, on all nodes together.
        nodes: what each of its nodes has of each kind, free or not.
    """
    asked = " and ".join(f"{need:g} {kind}" for kind, need in needs.items())
    if not any(all(node.get(kind, 0) >= need for kind, need in needs.items()) for node in nodes):
        return f"needs {asked} on one node, and no node has that many"
    short = {kind: free.get(kind, 0) for kind, need in needs.items() if free.get(kind, 0) < need}
    if not short:
        return None
    return f"needs {asked}, " + " and ".join(f"{left:g} {kind} free" for kind, left in short.items())


async def lack_of(needs: Mapping[str, float]) -> str | None:
    """Ask the cluster that this process is connected to for :func:`lacking_room`.

    Raises:
        Exception: the head is away, which ends this process.
    """
    import ray

    nodes = [node["Resources"] for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
    return lacking_room(needs, await asyncio.to_thread(ray.available_resources), nodes)
