"""What the server says of its own API: Swagger UI from our own files, and an OpenAPI document that knows its errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse

from app.contract.problems import MEDIA_TYPE
from app.contract.schemas import ProblemOut
from app.http.auth import OPEN


def add_docs(app: FastAPI, *, with_key: bool) -> None:
    """Adds `/docs` and has `/openapi.json` say what errors look like, and who may call."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=f"{app.title}: API",
            swagger_js_url="/static/swagger/swagger-ui-bundle.js",
            swagger_css_url="/static/swagger/swagger-ui.css",
            swagger_favicon_url="/static/swagger/favicon-32x32.png",
            swagger_ui_parameters={"validatorUrl": None},
        )

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _tell_problems(schema)
            if with_key:
                _tell_key(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _tell_problems(schema: dict[str, Any]) -> None:
    shapes = schema["components"]["schemas"]
    document = ProblemOut.model_json_schema(ref_template="#/components/schemas/{model}")
    shapes |= document.pop("$defs", {})
    shapes[ProblemOut.__name__] = document
    shapes.pop("HTTPValidationError", None)
    shapes.pop("ValidationError", None)
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{ProblemOut.__name__}"}}}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for status, text in list(_everywhere(path, method, operation)):
                operation["responses"][status] = {"description": text, "content": content}


def _everywhere(path: str, method: str, operation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The refusals that a route shares with its kind: status and description."""
    yield "421", "Wrong host"
    if path.startswith("/v1/") or "422" in operation["responses"]:
        yield "422", "A field is not valid"
    if method != "get":
        yield "403", "Another site may not do this"
    if "requestBody" in operation:
        yield "400", "Malformed"
        yield "413", "Too large"


def _tell_key(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "OMNI_R1_API_KEY of the server"}
    }
    schema["security"] = [{"key": []}]
    shape = {"$ref": f"#/components/schemas/{ProblemOut.__name__}"}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if path in OPEN:
                operation["security"] = []
            else:
                operation["responses"]["401"] = {
                    "description": "The server wants its key", "content": {MEDIA_TYPE: {"schema": shape}},
                }  # fmt: skip
