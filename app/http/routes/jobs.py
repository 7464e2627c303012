"""`/v1/jobs`: thin routes over the job service."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import AfterValidator

from app.common import pools
from app.common.pools import in_pool
from app.contract.examples import JOB_SPEC
from app.contract.problems import field_problem
from app.contract.schemas import clean_text
from app.contract.schemas_jobs import EstimateOut, JobContinue, JobList, JobOut, JobUpdate, MetricsPage, SeriesList
from app.contract.words import JobStatus, Method
from app.http.deps import (
    LOCATION,
    AfterJob,
    App,
    Key,
    Limit,
    Position,
    create_once,
    follow,
    problems,
    require_json,
    stream_answers,
)
from training.spec.spec import JobSpec

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
Text = Annotated[str, AfterValidator(clean_text), Query(max_length=100)]


@router.post(
    "",
    status_code=202,
    response_model=JobOut,
    dependencies=[Depends(require_json)],
    summary="Start a job",
    responses=problems(
        400, 403, 409, 413, 415, 422, 429, 503, 507, also={202: {"description": "The job, queued", "headers": LOCATION}}
    ),
)
async def create_job(
    request: Request,
    body: Annotated[JobSpec, Body(openapi_examples={"pesft": {"value": JOB_SPEC}})],
    app: App,
    idempotency_key: Key = None,
) -> Response:
    """The whole spec is validated first; a 422 names every invalid field."""
    make = partial(app.jobs.create, body)
    job, headers = await create_once(request, app, idempotency_key, router.prefix, make)
    return JSONResponse(job, 202, headers)


@router.get("", response_model=JobList, responses=problems(422, 503))
@in_pool(pools.reads)
def list_jobs(
    app: App,
    limit: Limit = 20,
    after: AfterJob = None,
    status: JobStatus | None = None,
    method: Method | None = None,
    name: Text | None = None,
    tag: Text | None = None,
    sweep: Text | None = None,
) -> Any:
    """Newest first."""
    filters = {"status": status, "method": method, "name": name, "tag": tag, "sweep_id": sweep}
    data, has_more = app.jobs.page(limit=limit, after=after, **filters)
    return JSONResponse({"data": data, "has_more": has_more})


@router.get("/metrics", response_model=SeriesList, summary="Metrics of several jobs", responses=problems(422, 503))
@in_pool(pools.reads)
def jobs_metrics(
    app: App,
    ids: Annotated[str, AfterValidator(clean_text), Query(description="ids of jobs, with commas")],
    keys: Annotated[str, AfterValidator(clean_text), Query(description="metrics, with commas")] = "",
    points: Annotated[int, Query(ge=5, le=20_000, description="the most values of each metric")] = 500,
    from_: Annotated[int | None, Query(alias="from", ge=0, le=2**53, description="first step")] = None,
    to: Annotated[int | None, Query(ge=0, le=2**53, description="last step")] = None,
) -> Any:
    """For charts: sampled so that peaks and gaps stay, exact where few enough values lie between the two steps."""
    job_ids, metrics = (_listed(text, most, name) for text, most, name in ((ids, 100, "ids"), (keys, 50, "keys")))
    return JSONResponse(app.runs.series(job_ids, metrics, points=points, first=from_, last=to))


def _listed(text: str, most: int, name: str) -> list[str]:
    """The parts of a list with commas, without repetitions; 422 if there are too many."""
    found = list(dict.fromkeys(part for part in text.split(",") if part))
    if len(found) > most:
        raise field_problem("invalid", f"query.{name}", f"must name at most {most}, not {len(found)}")
    return found


@router.post(
    "/estimate",
    response_model=EstimateOut,
    dependencies=[Depends(require_json)],
    summary="How long a job will take here",
    responses=problems(400, 403, 413, 415, 422, 503),
)
async def estimate_job(
    body: Annotated[JobSpec, Body(openapi_examples={"pesft": {"value": JOB_SPEC}})], app: App
) -> Response:
    """From finished jobs like it on this server; null without one. Queues nothing."""
    return JSONResponse(await pools.reads.run(app.runs.estimate, body))


@router.get("/{job_id}", response_model=JobOut, responses=problems(404, 503))
async def get_job(job_id: str, app: App) -> Response:
    """The whole job, with its current progress."""
    return JSONResponse(await app.jobs.get(job_id))


@router.patch(
    "/{job_id}",
    response_model=JobOut,
    dependencies=[Depends(require_json)],
    responses=problems(400, 403, 404, 415, 422, 503, 507),
)
async def update_job(job_id: str, body: JobUpdate, app: App) -> Response:
    """Sets name, tags and note of a job in any state; absent fields stay unchanged."""
    return JSONResponse(await app.runs.update(job_id, body))


@router.get(
    "/{job_id}/events",
    response_class=Response,
    summary="The job's events, live or replayed",
    responses=stream_answers("JobEvent", "The job has ended and the position is past its last event"),
)
async def job_events(job_id: str, position: Position, app: App) -> Response:
    """Resumes like trace events; ends after the job's last `job.status`."""
    return await follow(app.jobs, job_id, position)


@router.get("/{job_id}/metrics", response_model=MetricsPage, responses=problems(404, 422, 503))
@in_pool(pools.reads)
def job_metrics(
    job_id: str,
    app: App,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int, Query(ge=0, le=2**53, description="`seq` of the last row of the previous page")] = 0,
) -> Any:
    """Oldest first. A resumed job may repeat steps of a stage: the later row counts."""
    data, has_more = app.jobs.metrics(job_id, after=after, limit=limit)
    return JSONResponse({"data": data, "has_more": has_more})


@router.get(
    "/{job_id}/files/{name:path}",
    response_class=FileResponse,
    summary="An image, report or log of a job",
    responses=problems(404, 503, also={200: {"description": "The file"}}),
)
@in_pool(pools.reads)
def job_file(job_id: str, name: str, app: App) -> Response:
    """Files linked by `sample` and `report` events, `log.txt` and `predictions.jsonl`; deleted with the job."""
    path = app.jobs.file(job_id, name)
    kinds = {".png": "image/png", ".json": "application/json", ".jsonl": "application/x-ndjson"}
    return FileResponse(path, media_type=kinds.get(path.suffix, "text/plain; charset=utf-8"))


@router.post("/{job_id}/cancel", response_model=JobOut, responses=problems(403, 404, 503))
async def cancel_job(job_id: str, app: App) -> Response:
    """Stops at the next step boundary with a checkpoint; no-op for ended jobs."""
    return JSONResponse(await app.jobs.cancel(job_id))


@router.post("/{job_id}/resume", status_code=202, response_model=JobOut, responses=problems(403, 404, 409, 503))
async def resume_job(job_id: str, app: App) -> Response:
    """Continues from the saved state, with the same order of data."""
    return JSONResponse(await app.jobs.resume(job_id), 202)


@router.post(
    "/{job_id}/continue",
    status_code=202,
    response_model=JobOut,
    dependencies=[Depends(require_json)],
    summary="Go on from a finished job",
    responses=problems(
        400,
        403,
        404,
        409,
        413,
        415,
        422,
        429,
        503,
        507,
        also={202: {"description": "The new job", "headers": LOCATION}},
    ),
)
async def continue_job(
    request: Request, job_id: str, body: JobContinue, app: App, idempotency_key: Key = None
) -> Response:
    """Queues a job with its weights, optimiser state and order of data, for more steps; the finished one stays."""
    make = partial(app.runs.go_on, job_id, body)
    where = f"{router.prefix}/{job_id}/continue"
    job, headers = await create_once(
        request, app, idempotency_key, where, make, location=lambda made: f"{router.prefix}/{made['id']}"
    )
    return JSONResponse(job, 202, headers)


@router.delete("/{job_id}", status_code=204, responses=problems(403, 404, 409, 503))
async def delete_job(job_id: str, app: App) -> Response:
    """Deletes row, log and samples; checkpoints stay. 409 while the job is queued or running."""
    await app.jobs.delete(job_id)
    return Response(status_code=204)
