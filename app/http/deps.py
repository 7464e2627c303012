"""Shared parts of the routes: services, common parameters, idempotent creation, event streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from fastapi import Depends, Header, Query, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import AfterValidator

from app.checkpoints.activation import Activation
from app.checkpoints.hub import HubFetcher
from app.checkpoints.registration import Registration
from app.checkpoints.registry import CheckpointRegistry
from app.common import pools
from app.common.metrics import Metrics
from app.common.prefix import below
from app.common.settings import Settings
from app.common.spans import Spans
from app.contract.problems import MEDIA_TYPE, Problem, field_problem
from app.contract.schemas import ProblemOut, clean_text
from app.contract.words import MAX_PAGE
from app.http.event_stream import EventStream
from app.http.keys import Keys
from app.jobs.datasets import DatasetStore
from app.jobs.grader import Grader
from app.jobs.runs import Runs
from app.jobs.servers import ServerWatch
from app.jobs.service import JobService
from app.jobs.sweeps import Sweeps
from app.storage.database import Database
from app.storage.idempotency import Claim, IdempotencyKeys
from app.storage.ids import GROUP_ID, JOB_ID, TRACE_ID
from app.storage.image_intake import ImageIntake
from app.storage.images import ImageStore, PartialStore
from app.storage.mirror import Mirror
from app.storage.retention import Retention
from app.storage.uploads import Spool
from app.traces.event_log import EventLog
from app.traces.groups import GroupService
from app.traces.intake import Intake
from app.traces.interventions import Interventions
from app.traces.reader import Export
from app.traces.service import TraceService
from app.traces.tasks import TaskWorld
from app.traces.token_service import TokenService
from model.engine.messages import Generation


@dataclass(frozen=True)
class Services:
    """All parts of one server, built in `app.parts` and passed to the routes."""

    settings: Settings
    db: Database
    events: EventLog
    generation: Generation
    checkpoints: CheckpointRegistry
    activation: Activation
    registration: Registration
    hub: HubFetcher
    images: ImageStore
    image_intake: ImageIntake
    spool: Spool
    partials: PartialStore
    mirror: Mirror
    world: TaskWorld
    intake: Intake
    traces: TraceService
    groups: GroupService
    tokens: TokenService
    interventions: Interventions
    jobs: JobService
    runs: Runs
    sweeps: Sweeps
    servers: ServerWatch
    datasets: DatasetStore
    idempotency: IdempotencyKeys
    metrics: Metrics
    spans: Spans
    grader: Grader
    retention: Retention
    key: Keys | None = None


async def services(request: Request) -> Services:
    """The services of the app; a coroutine, since FastAPI runs plain functions in a thread."""
    found: Services = request.app.state.services
    return found


App = Annotated[Services, Depends(services)]


async def require_json(request: Request) -> None:
    """415 for bodies not declared as JSON; forms of other sites could send anything."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if (kind or await request.body()) and kind != "application/json":
        raise Problem("not_json", "send the body with Content-Type: application/json")


async def known_query(request: Request) -> None:
    """422 for unknown query parameters, so that a misspelt filter is not ignored."""
    route = request.scope.get("route")
    if not isinstance(route, APIRoute) or not route.path.startswith("/v1/"):
        return
    known = _query_names(route.dependant)
    for name in request.query_params:
        if name not in known:
            has = f"known parameters: {', '.join(sorted(known))}" if known else "this path takes none"
            raise field_problem("invalid", f"query.{name[:100]}", f"unknown parameter; {has}")


async def known_ids(request: Request) -> None:
    """404 for an id with the NUL character, which PostgreSQL cannot look up."""
    if any("\0" in str(value) for value in request.path_params.values()):
        _, _version, collection, *_ = below(request.scope).split("/")
        raise Problem(f"{collection.removesuffix('s')}_not_found", "no id contains the NUL character")


def _query_names(dependant: Dependant) -> set[str]:
    names = {param.alias for param in dependant.query_params}
    return names.union(*(_query_names(inner) for inner in dependant.dependencies))


# For the schema only: the route answers 400 instead of the usual 422.
_POSITION = {"pattern": "^[0-9]{1,15}$"}


async def position(
    after: Annotated[
        str | None,
        Query(description="only events with larger ids; a non-negative integer", json_schema_extra=_POSITION),
    ] = None,
    last_event_id: Annotated[
        str | None, Header(description="takes precedence over `after`", json_schema_extra=_POSITION)
    ] = None,
) -> int:
    """The start of a stream: `Last-Event-ID`, else `after`, else 0; 400 unless both are non-negative integers."""
    given = [value for value in (last_event_id, after) if value is not None]
    if any(not (value.isascii() and value.isdecimal()) or len(value) > 15 for value in given):
        raise Problem("bad_position", "Last-Event-ID and after must be non-negative integers")
    return int(given[0]) if given else 0


Position = Annotated[int, Depends(position)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", description="1 to 128 visible characters; kept 24 h")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
CheckpointName = Annotated[str | None, AfterValidator(clean_text), Query(max_length=200)]
_AFTER = "id of the last entry of the previous page"
AfterGroup = Annotated[str | None, Query(pattern=f"^{GROUP_ID}$", description=_AFTER)]
AfterTrace = Annotated[str | None, Query(pattern=f"^{TRACE_ID}$", description=_AFTER)]
AfterJob = Annotated[str | None, Query(pattern=f"^{JOB_ID}$", description=_AFTER)]

SKIPPED = "X-Skipped"  # number of traces that an export left out
LOCATION: dict[str, Any] = {"Location": {"schema": {"type": "string"}}}


def event_stream(event: str) -> dict[str, Any]:
    """`content=` of a response that streams these events: text, with a link to the schema of one event.

    As `schema` it would break generated clients: they would parse the whole text as one event.
    """
    link = {"$ref": f"#/components/schemas/{event}"}
    return {"text/event-stream": {"schema": {"type": "string"}, "x-event-schema": link}}


async def create_once(
    request: Request,
    app: Services,
    key: str | None,
    where: str,
    make: Callable[[Claim], Awaitable[dict[str, Any]]],
    location: Callable[[dict[str, Any]], str] | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The result of `make`, or the first response for this key, with the response headers.

    `location` is the path of what was made, by default `where` with its id.
    """
    with app.idempotency.hold(f"POST {where}", key, await request.body()) as claim:
        replay = await pools.reads.run(app.idempotency.replay, claim)
        made = replay.response if replay else await make(claim)
    headers = {"Location": location(made) if location is not None else f"{where}/{made['id']}"}
    return made, headers | ({"Idempotent-Replayed": "true"} if replay else {})


class Followed(Protocol):
    """A service with event logs: traces, jobs."""

    async def past_the_end(self, id_: str, after: int, /) -> bool:
        """Whether the log has ended and has no event after `after`; raises Problem for an unknown id."""
        ...

    def read(self, id_: str, after: int, /) -> AsyncIterator[bytes]:
        """The events after `after` as server-sent events, live until the log ends."""
        ...


async def follow(service: Followed, id_: str, after: int) -> Response:
    """Stream the events after `after`; 204, which stops an EventSource, if there are no more."""
    if await service.past_the_end(id_, after):
        return Response(status_code=204)
    return EventStream(service.read(id_, after))


def exported(export: Export) -> Response:
    """The file as an attachment, in a sandbox: a page with the text of traces is no page of this server."""
    headers = {
        "Content-Disposition": f'attachment; filename="{export.name}"',
        "Content-Security-Policy": "sandbox; frame-ancestors 'none'",
        "Cache-Control": "no-store",
        SKIPPED: str(export.skipped),
    }
    return StreamingResponse(export.pieces, media_type=export.media_type, headers=headers)


def creation_answers(what: str, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that creates traces and starts them; `what` describes its 201."""
    made = {"description": what, "content": event_stream("TraceEvent"), "headers": LOCATION}
    return problems(400, 403, 409, 413, 415, 422, 429, 503, 507, *statuses, also={201: made})


def stream_answers(event: str, past_the_end: str) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that ends in `follow`: the schema of its events, and the description of its 204."""
    streamed = {"description": f"Server-sent events; `{event}` is the schema of each", "content": event_stream(event)}
    return problems(400, 404, 503, also={200: streamed, 204: {"description": past_the_end}})


def problems(*statuses: int, also: Mapping[int, dict[str, Any]] | None = None) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: these problem documents plus `also`."""
    shape = {"schema": {"$ref": f"#/components/schemas/{ProblemOut.__name__}"}}
    answers: dict[int | str, dict[str, Any]] = {}
    answers.update((status, answer) for status, answer in (also or {}).items())
    for status in sorted(statuses):
        answers[status] = {"description": _TITLES[status], "content": {MEDIA_TYPE: shape}}
    return answers


_TITLES = {
    400: "Malformed",
    401: "API key required",
    403: "Cross-site request, or a key without the role",
    404: "Not found",
    409: "Conflict",
    413: "Too large",
    415: "Unsupported content type",
    421: "Wrong host",
    422: "A field is invalid",
    429: "Queue full, the key's limit reached, or too many wrong keys",
    503: "Not ready",
    504: "The hub is unavailable",
    507: "Disk full, or not enough memory",
}
