"""Which role each route of the API needs: the one table of it.

Everything else that a key opens (pages, `/static`, `/docs`) needs no more than `read`. The paths of
:data:`app.http.auth.OPEN` need no key.
"""

from __future__ import annotations

from fastapi import Request
from fastapi.routing import APIRoute

from app.contract.words import Role
from app.storage import keys

_READ = (
    "GET /livez",
    "GET /readyz",
    "GET /login",
    "POST /login",
    "GET /metrics",
    "GET /v1/limits",
    "POST /v1/limits",
    "GET /v1/extensions",
    "GET /v1/storage",
    "GET /v1/tasks",
    "GET /v1/traces",
    "GET /v1/traces/{trace_id}",
    "GET /v1/traces/{trace_id}/events",
    "GET /v1/traces/{trace_id}/film",
    "GET /v1/traces/{trace_id}/partials/{name}",
    "GET /v1/traces/{trace_id}/tree",
    "GET /v1/traces/{trace_id}/tokens",
    "GET /v1/traces/{trace_id}/export",
    "POST /v1/exports",
    "GET /v1/groups",
    "GET /v1/groups/{group_id}",
    "GET /v1/groups/{group_id}/events",
    "GET /v1/responses/{response_id}",
    "GET /v1/responses/{response_id}/input_items",
    "GET /v1/models",
    "GET /v1/models/{model_id}",
    "GET /v1/images/{image_id}",
    "GET /v1/images/{image_id}/model-view",
    "GET /v1/checkpoints",
    "GET /v1/checkpoints/{checkpoint_id}",
    "GET /v1/leaderboard",
    "GET /v1/jobs",
    "GET /v1/jobs/metrics",
    "GET /v1/jobs/{job_id}",
    "GET /v1/jobs/{job_id}/events",
    "GET /v1/jobs/{job_id}/metrics",
    "GET /v1/jobs/{job_id}/files/{name:path}",
    "GET /v1/sweeps",
    "GET /v1/sweeps/{sweep_id}",
    "GET /v1/datasets/{dataset_id}",
    "GET /v1/datasets/{dataset_id}/rejections",
    "GET /v1/datasets/{dataset_id}/images/{name}",
)
_ASK = (
    "POST /v1/traces",
    "PATCH /v1/traces/{trace_id}",
    "DELETE /v1/traces/{trace_id}",
    "POST /v1/traces/{trace_id}/pause",
    "POST /v1/traces/{trace_id}/continue",
    "POST /v1/traces/{trace_id}/cancel",
    "POST /v1/traces/{trace_id}/branches",
    "POST /v1/traces/{trace_id}/alternatives",
    "POST /v1/traces/{trace_id}/reliance",
    "POST /v1/traces/{trace_id}/attention",
    "POST /v1/traces/{trace_id}/interventions",
    "POST /v1/groups/{group_id}/cancel",
    "DELETE /v1/groups/{group_id}",
    "POST /v1/responses",
    "POST /v1/responses/{response_id}/cancel",
    "DELETE /v1/responses/{response_id}",
    "POST /v1/images",
    "POST /v1/rewards",
)
_TRAIN = (
    "POST /v1/jobs",
    "POST /v1/jobs/estimate",
    "PATCH /v1/jobs/{job_id}",
    "DELETE /v1/jobs/{job_id}",
    "POST /v1/jobs/{job_id}/cancel",
    "POST /v1/jobs/{job_id}/resume",
    "POST /v1/jobs/{job_id}/continue",
    "POST /v1/sweeps",
    "POST /v1/sweeps/{sweep_id}/cancel",
    "POST /v1/sweeps/{sweep_id}/resume",
    "POST /v1/datasets",
)
_ADMIN = (
    "POST /v1/checkpoints",
    "POST /v1/checkpoints/{checkpoint_id}/activate",
    "DELETE /v1/checkpoints/{checkpoint_id}",
    "POST /v1/storage/prune",
)
_BY_ROLE: dict[Role, tuple[str, ...]] = {"read": _READ, "ask": _ASK, "train": _TRAIN, "admin": _ADMIN}
ROLE_OF: dict[str, Role] = {route: role for role, routes in _BY_ROLE.items() for route in routes}


async def allowed(request: Request) -> None:
    """403 unless the caller's role includes the one that the route needs; a route without a role needs `admin`."""
    route = request.scope.get("route")
    if isinstance(route, APIRoute):
        method = "GET" if request.method == "HEAD" else request.method
        keys.require(ROLE_OF.get(f"{method} {route.path}", "admin"))
