"""`/v1/responses`: traces for programs that speak OpenAI's Responses API."""

from __future__ import annotations

import asyncio
import base64
import json
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from app.common import pools
from app.contract.problems import Problem, field_problem
from app.http.deps import (
    LOCATION,
    App,
    Key,
    Limit,
    Services,
    create_once,
    event_stream,
    problems,
    require_json,
)
from app.http.event_stream import EventStream, gone
from app.http.responses.events import event_schemas
from app.http.responses.request import ID, ResponseCreate, asked, in_terms_of, input_items
from app.http.responses.shapes import InputItemList, ResponseDeleted, ResponseOut
from app.http.responses.stream import frames, with_images
from app.http.responses.translation import Ended, Picture, Translation, translated
from app.storage.idempotency import Claim

__all__ = ["event_schemas", "router"]

router = APIRouter(prefix="/v1/responses", tags=["responses"])

_STREAMED = {"content": event_stream("ResponseEvent")}


@router.post(
    "",
    response_model=ResponseOut,
    dependencies=[Depends(require_json)],
    summary="Create a response",
    responses=problems(
        *(400, 403, 404, 409, 413, 415, 429, 503, 507),
        also={200: {"description": "The response; with `stream` its events", "headers": LOCATION, **_STREAMED}},
    ),
)
async def create_response(request: Request, body: ResponseCreate, app: App, idempotency_key: Key = None) -> Response:
    """Creates a trace; answers with the whole response, its events (`stream`), or at once (`background`)."""

    async def make(claim: Claim) -> dict[str, Any]:
        previous_id, inherited = await _previous(app, body.previous_response_id)
        question = asked(body, inherited)
        try:
            return await app.traces.create(
                question.trace,
                background=question.request["background"],
                claim=claim,
                request=question.request,
                previous_id=previous_id,
            )
        except Problem as problem:
            raise in_terms_of(problem, question.places) from None

    def location(made: dict[str, Any]) -> str:
        return f"{router.prefix}/{ID}{made['id']}"

    trace, headers = await create_once(request, app, idempotency_key, router.prefix, make, location)
    if body.stream:
        return await _stream(app, trace["id"], after=-1, headers=headers)
    if body.background:
        return JSONResponse(await _created(app, trace["id"]), headers=headers)
    await _until_ended(request, app, trace["id"])
    return JSONResponse(await _response(app, trace["id"]), headers=headers)


@router.get(
    "/{response_id}",
    response_model=ResponseOut,
    summary="A response, or its events",
    responses=problems(
        400, 404, 503, also={200: {"description": "The response up to now; with `stream` its events", **_STREAMED}}
    ),
)
async def get_response(
    response_id: str,
    app: App,
    stream: Annotated[bool, Query(description="its events, live or replayed")] = False,
    starting_after: Annotated[
        int | None, Query(ge=0, le=10**15, description="only events with a larger `sequence_number`")
    ] = None,
    include_obfuscation: Annotated[Literal["false"] | None, Query(description="events have no padding")] = None,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=10**15, description="takes precedence over `starting_after`")
    ] = None,
) -> Response:
    """The same events as the stream of its creation, byte for byte; the stream of an ended one ends at its end."""
    trace_id = _trace_id(response_id)
    if stream:
        after = last_event_id if last_event_id is not None else starting_after
        return await _stream(app, trace_id, after=-1 if after is None else after, limited=True)
    if starting_after is not None:
        raise field_problem("invalid", "query.starting_after", "only with stream=true")
    return JSONResponse(await _response(app, trace_id))


@router.post("/{response_id}/cancel", response_model=ResponseOut, responses=problems(403, 404, 409, 503))
async def cancel_response(response_id: str, app: App) -> Response:
    """Returns when the engine has stopped; no-op for ended responses."""
    trace_id = (await _record(app, response_id)).trace["id"]
    await app.traces.cancel(trace_id)
    return JSONResponse(await _response(app, trace_id))


@router.delete("/{response_id}", response_model=ResponseDeleted, responses=problems(403, 404, 409, 503))
async def delete_response(response_id: str, app: App) -> Response:
    """Deletes the trace, too; an active one is cancelled first."""
    trace_id = (await _record(app, response_id)).trace["id"]
    await app.traces.delete(trace_id)
    return JSONResponse(ResponseDeleted(id=response_id).model_dump())


@router.get("/{response_id}/input_items", response_model=InputItemList, responses=problems(400, 404, 503))
async def list_input_items(
    response_id: str,
    app: App,
    limit: Limit = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="by default, the last one first")] = "desc",
    after: Annotated[str | None, Query(max_length=100, description="id of the previous page's last item")] = None,
) -> Response:
    """The messages of the question; its inherited images are the first one."""
    found = await _record(app, response_id)
    items = input_items(found.trace["id"], found.request, found.trace["images"])
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise field_problem("not_found", "query.after", "the response has no item with this id")
    rest = items[ids.index(after) + 1 :] if after is not None else items
    page = rest[:limit]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return JSONResponse({"object": "list", "data": page, **ends, "has_more": len(rest) > limit})


# ---- helpers


def _trace_id(response_id: str) -> str:
    trace_id = response_id.removeprefix(ID)
    if trace_id == response_id:
        raise Problem("response_not_found", f"ids of responses begin with {ID}")
    return trace_id


async def _record(app: Services, response_id: str) -> Any:
    """The response's record; 404 if unknown."""
    return await app.traces.reader.response(_trace_id(response_id))


async def _previous(app: Services, response_id: str | None) -> tuple[str | None, list[str]]:
    """The previous trace and the ids of its question's images."""
    if response_id is None:
        return None, []
    try:
        found = await _record(app, response_id)
    except Problem as problem:
        raise field_problem(problem.code, "body.previous_response_id", problem.detail) from None
    return found.trace["id"], [image["image_id"] for image in found.trace["images"]]


async def _created(app: Services, trace_id: str) -> dict[str, Any]:
    """The response as it was created, also for a request that is repeated."""
    found = await app.traces.reader.response(trace_id)
    return translated(found.trace, found.request, [("trace.queued", {})], Ended(None, 0))


async def _response(app: Services, trace_id: str) -> dict[str, Any]:
    """The response up to now, with its images."""
    stored = await pools.reads.run(partial(app.events.stored, trace_id))
    found = await app.traces.reader.response(trace_id)  # after its events: it has ended if they have
    ended = Ended(found.trace["finished_at"], found.step_tokens)

    def fold() -> dict[str, Any]:
        return translated(found.trace, found.request, ((type_, json.loads(line)) for _, type_, line in stored), ended)

    whole: dict[str, Any] = await with_images(await pools.work.run(fold), partial(_load, app))
    return whole


async def _stream(
    app: Services, trace_id: str, *, after: int, headers: dict[str, str] | None = None, limited: bool = False
) -> Response:
    """The events above `after`; 404 for an unknown response."""
    found = await app.traces.reader.response(trace_id)
    await app.traces.reader.past_the_end(trace_id, 0)

    async def ended() -> Ended | None:
        try:
            now = await app.traces.reader.response(trace_id)
        except Problem:
            return None
        return Ended(now.trace["finished_at"], now.step_tokens)

    translation = Translation(found.trace, found.request)
    log = app.traces.reader.read(trace_id, 0)
    return EventStream(
        frames(log, translation, after=after, load=partial(_load, app), ended=ended), headers=headers, limited=limited
    )


async def _until_ended(request: Request, app: Services, trace_id: str) -> None:
    """Read the trace to its end, or until the client leaves: then it has one reader less."""

    async def read() -> None:
        await app.traces.reader.past_the_end(trace_id, 0)
        async for _ in app.traces.reader.read(trace_id, 0):
            pass

    tasks = {asyncio.create_task(read()), asyncio.create_task(gone(request.receive))}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _load(app: Services, picture: Picture) -> str | None:
    """The image in base64; for a stored one that is gone None, for a preview an empty text."""

    def read() -> str | None:
        try:
            if picture.image_id is not None:
                return base64.b64encode(app.images.read(picture.image_id)).decode()
            _, trace_id, _, name = (picture.preview or "").rsplit("/", 3)
            return base64.b64encode(app.partials.file(trace_id, name).read_bytes()).decode()
        except (Problem, FileNotFoundError):
            return None if picture.image_id is not None else ""

    return await pools.reads.run(read)
