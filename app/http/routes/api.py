"""All routes of the API in one router, built once: every server of a process uses it."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from app.http.deps import known_ids, known_query
from app.http.openapi import operation_id
from app.http.roles import allowed
from app.http.routes import (
    branches,
    checkpoints,
    datasets,
    exports,
    groups,
    images,
    jobs,
    login,
    responses,
    rewards,
    sweeps,
    system,
    tasks,
    traces,
    why,
)

_MODULES = (
    system,
    login,
    traces,
    branches,
    why,
    groups,
    responses,
    exports,
    images,
    tasks,
    jobs,
    datasets,
    checkpoints,
    rewards,
    sweeps,
)

API = APIRouter(generate_unique_id_function=operation_id)
for _module in _MODULES:
    API.include_router(_module.router, dependencies=[Depends(allowed), Depends(known_query), Depends(known_ids)])

# Each on its own, as its module declares it.
ROUTES = [route for module in _MODULES for route in module.router.routes]
