"""Gradio starts without unneeded steps, which it would run otherwise."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path

import gradio as gr
import pytest
from fastapi import FastAPI
from gradio import blocks as gradio_blocks
from starlette.routing import Mount
from starlette.testclient import TestClient

from app.client import Client
from app.ui.page import mount_ui
from app.ui.quick_start import without_stubs

SOURCE = """
import gradio as gr


class Own(gr.HTML):
    EVENTS = []

    def __init__(self, value=""):
        super().__init__(value=value)
"""


def test_no_stub_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("without", "with_one"):
        (tmp_path / f"component_{name}.py").write_text(SOURCE)
    with without_stubs():
        made = importlib.import_module("component_without").Own
    assert issubclass(made, gr.HTML)
    assert [path.name for path in tmp_path.glob("*.pyi")] == []
    importlib.import_module("component_with_one")
    assert [path.name for path in tmp_path.glob("*.pyi")] == ["component_with_one.pyi"]
    del sys.modules["component_without"], sys.modules["component_with_one"]


def test_one_application_serves_all_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    create = gradio_blocks.App.create_app

    def counted(*args: object, **options: object) -> object:
        built.append(create(*args, **options))  # type: ignore[arg-type]
        return built[-1]

    monkeypatch.setattr(gradio_blocks.App, "create_app", counted)
    app = FastAPI()

    async def mount() -> None:  # outside a loop Gradio creates one and leaves it open
        mount_ui(app, Client("http://127.0.0.1:1"))

    asyncio.run(mount())
    (mounted,) = [route.app for route in app.routes if isinstance(route, Mount)]
    assert built == [mounted]
    assert mounted.get_blocks().app is mounted  # type: ignore[attr-defined]
    with TestClient(app) as client:
        for path in ("/", "/gallery", "/training", "/checkpoints", "/about"):
            assert client.get(path).status_code == 200
