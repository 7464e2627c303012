"""The pages as a separate ASGI application, which `app.main` mounts after the API once it is built."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from app.client import Client
from app.ui.page import mount_ui
from app.ui.root import RootMiddleware


def build_page(base_url: str, api_key: str = "") -> FastAPI:
    """The pages for the server at ``base_url``; the result's lifespan must run. Takes seconds."""
    client = Client(base_url, api_key=api_key)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        client.close()

    page = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    mount_ui(page, client)
    page.add_middleware(RootMiddleware)
    return page
