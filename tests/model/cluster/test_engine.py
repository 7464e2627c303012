"""The engine on Ray, without Ray."""

from __future__ import annotations

import importlib.util

import pytest

from app.common.settings import SettingsError, read_settings
from app.engine import engine_of
from model.cluster.engine import RayEngine
from model.engine.client import EngineProcess
from model.engine.messages import EngineError


async def test_missing_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    engine = RayEngine(num_replicas=2)
    engine.spawn()
    with pytest.raises(EngineError) as refused:
        await engine.start()
    assert "omni-r1-studio[ray]" in refused.value.detail
    await engine.close()


@pytest.mark.parametrize("name", ["OMNI_R1_REPLICAS", "OMNI_R1_GPUS_PER_REPLICA", "OMNI_R1_RETRY"])
def test_settings_of_replicas_need_ray(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert isinstance(engine_of(read_settings()), EngineProcess)
    monkeypatch.setenv(name, "2" if name == "OMNI_R1_REPLICAS" else "1")
    with pytest.raises(SettingsError, match="OMNI_R1_ENGINE=ray"):
        read_settings()
    monkeypatch.setenv("OMNI_R1_ENGINE", "ray")
    assert isinstance(engine_of(read_settings()), RayEngine)
