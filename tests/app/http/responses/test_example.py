"""`examples/responses.py` runs as its docstring says."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from openai import AsyncOpenAI

from tests.app.conftest import Server
from tests.app.http.responses.conftest import trace_id
from tests.fakes import png

EXAMPLE = Path(__file__).parents[4] / "examples" / "responses.py"


async def test_example_shows_steps_images_and_answers(server: Server, openai: AsyncOpenAI, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(png())
    question = "What colour is the circle?"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, EXAMPLE, "picture.png", question, "--then", "And the star?"),
        cwd=tmp_path,
        env={"OMNI_R1_URL": f"http://127.0.0.1:{server.port}", "PYTHONPATH": ":".join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert out.decode().splitlines() == [
        "I look for the star.",
        "  images/1.png",
        "I draw a box around it.",
        "  images/3.png",
        "completed: red",
        "completed: red",
    ]
    assert (tmp_path / "images" / "1.png").read_bytes() == png(box=5)
    (second, first) = (await server.client.get("/v1/traces")).json()["data"]
    assert (first["question"], second["question"]) == (question, "And the star?")
    assert second["parent"]["trace_id"] == first["id"]
    assert trace_id(await openai.responses.retrieve(f"resp_{second['id']}")) == second["id"]
