"""Swagger UI from local files, and an OpenAPI document that includes events, errors and authentication."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute

from app.common.prefix import prefix_of
from app.contract.events import TRACE_EVENTS, stream_schemas
from app.contract.events_groups import GROUP_EVENTS
from app.contract.events_jobs import JOB_EVENTS
from app.contract.examples import EXAMPLES
from app.contract.problems import MEDIA_TYPE, OpenAIErrorOut, speaks_openai
from app.contract.schemas import ProblemOut
from app.http.auth import OPEN

STREAMS = {"TraceEvent": TRACE_EVENTS, "GroupEvent": GROUP_EVENTS, "JobEvent": JOB_EVENTS}


def operation_id(route: APIRoute) -> str:
    """The function's name, which generated clients use: `create_trace`."""
    return route.name


def add_docs(app: FastAPI, *, with_key: bool, schemas: Callable[[], Mapping[str, Any]]) -> None:
    """Add `/docs`, and events, errors, authentication and more `schemas` to `/openapi.json`."""

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        prefix = prefix_of(request.scope)
        return get_swagger_ui_html(
            openapi_url=f"{prefix}/openapi.json",
            title=f"{app.title}: API",
            swagger_js_url=f"{prefix}/static/swagger/swagger-ui-bundle.js",
            swagger_css_url=f"{prefix}/static/swagger/swagger-ui.css",
            swagger_favicon_url=f"{prefix}/static/swagger/favicon-32x32.png",
            swagger_ui_parameters={"validatorUrl": None},
        )

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _add_events(schema, schemas())
            _add_examples(schema)
            _add_problems(schema)
            if with_key:
                _add_key(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_events(schema: dict[str, Any], more: Mapping[str, Any]) -> None:
    shapes = schema["components"]["schemas"]
    for found in (*(stream_schemas(name, events) for name, events in STREAMS.items()), more):
        for shape, content in found.items():
            shapes.setdefault(shape, content)


def _add_examples(schema: dict[str, Any]) -> None:
    for name, example in EXAMPLES.items():
        schema["components"]["schemas"][name]["examples"] = [example]


def _add_problems(schema: dict[str, Any]) -> None:
    shapes = schema["components"]["schemas"]
    for model in (ProblemOut, OpenAIErrorOut):
        document = model.model_json_schema(ref_template="#/components/schemas/{model}")
        shapes |= document.pop("$defs", {})
        shapes[model.__name__] = document
    shapes.pop("HTTPValidationError", None)
    shapes.pop("ValidationError", None)
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            for status, text in list(_everywhere(path, method, operation)):
                answers[status] = {"description": text, "content": _problem(path)}
            if speaks_openai(path):
                answers.setdefault("400", answers.pop("422"))
                answers.update(
                    {status: answers[status] | {"content": _problem(path)} for status in answers if status >= "400"}
                )


def _problem(path: str) -> dict[str, Any]:
    """The content of an error response on this path."""
    kind, model = ("application/json", OpenAIErrorOut) if speaks_openai(path) else (MEDIA_TYPE, ProblemOut)
    return {kind: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}


def _everywhere(path: str, method: str, operation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Errors common to all routes of a kind: status and description."""
    yield "421", "Wrong host"
    if path.startswith("/v1/") or "422" in operation["responses"]:
        yield "422", "A field is invalid"
    if method != "get":
        yield "403", "Cross-site request, or a key without the role"
    if "requestBody" in operation:
        yield "400", "Malformed"
        yield "413", "Too large"


def _add_key(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "OMNI_R1_API_KEY of the server"}
    }
    schema["security"] = [{"key": []}]
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if path in OPEN:
                operation["security"] = []
            else:
                operation["responses"]["401"] = {"description": "API key required", "content": _problem(path)}
