"""The engine that the settings ask for."""

from __future__ import annotations

from typing import Protocol

from app.common.settings import Settings
from model.engine.messages import Generation


class SpawnedEngine(Generation, Protocol):
    """A `Generation` in processes of its own."""

    def spawn(self) -> None:
        """Start them, before there is an event loop."""

    def kill(self) -> None:
        """End them without waiting."""


def engine_of(settings: Settings) -> SpawnedEngine:
    """A child process, or replicas on a Ray cluster."""
    if settings.engine == "ray":
        from model.cluster.engine import RayEngine

        return RayEngine(
            num_replicas=settings.replicas,
            gpus_per_replica=settings.gpus_per_replica,
            retry=settings.retry,
            **settings.serving,
        )
    from model.engine.client import EngineProcess

    return EngineProcess({}, **settings.serving)
