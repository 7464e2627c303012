"""Clients generated from OpenAPI create a trace and a job, follow their typed events and read them again."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import Serve, Server
from tests.app.generated import generators
from tests.app.job_helpers import worker
from tests.fakes import png
from tests.patience import PATIENCE_S

HERE = Path(__file__).resolve().parent
IMAGE = "data:image/png;base64," + base64.b64encode(png(box=9)).decode()
STRICT = ("--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom,dom.asynciterable")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What the command prints; fails with its output."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


async def document(server: Server, folder: Path) -> Path:
    """The server's OpenAPI document as a file."""
    path = folder / "openapi.json"
    path.write_bytes((await server.client.get("/openapi.json")).content)
    return path


def followed(output: str) -> None:
    """Checks what `follow.ts` and `follow.py` print."""
    found: dict[str, Any] = json.loads(output)
    seen: Sequence[str] = found.pop("seen")
    assert [seen[0], seen[-1]] == ["trace.queued", "trace.completed"]
    assert {"trace.started", "text.delta", "image.partial", "image.completed", "answer.delta"} <= set(seen)
    assert found == {
        "answer": " red",
        "codes": 64,
        "trace": "red",
        "status": "completed",
        "steps": [3, 4],
        "job": "succeeded",
    }


async def test_typescript_client_is_typed_and_follows_events(serve: Serve, tmp_path: Path) -> None:
    modules = generators.node_modules()
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(HERE / "follow.ts", tmp_path)
    tools = modules / ".bin"
    async with serve(job_command=worker("succeed")) as server:
        types = ("--default-non-nullable=false", "--output", "studio.d.ts")
        source = await document(server, tmp_path)
        await asyncio.to_thread(run, tools / "openapi-typescript", source, *types, cwd=tmp_path)
        await asyncio.to_thread(run, tools / "tsc", *STRICT, "--noEmitOnError", "follow.ts", cwd=tmp_path)
        url = f"http://127.0.0.1:{server.port}"
        followed(await asyncio.to_thread(run, "node", "follow.js", url, IMAGE, cwd=tmp_path))


async def test_python_client_is_typed_and_follows_events(
    serve: Serve, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    python = generators.python(pytestconfig.cache.mkdir("generators"))
    (tmp_path / "settings.yml").write_text("post_hooks: []\n")  # they only format
    flags = ("--meta", "none", "--output-path", tmp_path / "studio", "--config", tmp_path / "settings.yml")
    async with serve(job_command=worker("succeed")) as server:
        generate = (python, "-m", "openapi_python_client", "generate", "--path", await document(server, tmp_path))
        await asyncio.to_thread(run, *generate, *flags, cwd=tmp_path)
        url = f"http://127.0.0.1:{server.port}"
        program = (python, HERE / "follow.py", url, IMAGE)
        followed(await asyncio.to_thread(run, *program, cwd=tmp_path, PYTHONPATH=str(tmp_path)))
