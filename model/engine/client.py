"""The process-backed client of the engine: spawn, messages, per-request queues, restart when the child dies."""

from __future__ import annotations

from model.engine.messages import (
    Cancelled,
    Emitted,
    EngineError,
    EngineStatus,
    Failed,
    Finished,
    Generation,
    GenerationRequest,
    ImageInput,
    Output,
    Paused,
    QueuePosition,
    SamplingRequest,
    Started,
    Terminal,
)

__all__ = [
    "Cancelled",
    "Emitted",
    "EngineError",
    "EngineStatus",
    "Failed",
    "Finished",
    "Generation",
    "GenerationRequest",
    "ImageInput",
    "Output",
    "Paused",
    "QueuePosition",
    "SamplingRequest",
    "Started",
    "Terminal",
]
