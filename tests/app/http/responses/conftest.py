"""The `openai` package as a client of the suite's servers."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response

from tests.app.conftest import Server
from tests.app.traces.conftest import studio
from tests.patience import PATIENCE_S

__all__ = ["studio"]


@contextlib.asynccontextmanager
async def client_of(server: Server, key: str = "dummy") -> AsyncIterator[AsyncOpenAI]:
    """A client of the server that tries every request once."""
    url = f"http://127.0.0.1:{server.port}/v1"
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture
async def openai(server: Server) -> AsyncIterator[AsyncOpenAI]:
    """A client of the test's server."""
    async with client_of(server) as client:
        yield client


async def about(server: Server, text: str = "Where is the red star?", **image: str) -> Any:
    """The `input` of a question about a stored image, or about the given one."""
    shown = image or {"file_id": await server.image()}
    parts = [{"type": "input_text", "text": text}, {"type": "input_image", "detail": "auto", **shown}]
    return [{"role": "user", "content": parts}]


def trace_id(response: Response) -> str:
    """The trace that the response is."""
    assert response.metadata is not None
    return response.metadata["trace_id"]


def data_url(image: bytes) -> str:
    """The image as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"
