"""OpenAPI is generated and correct, docs/api.md is complete, tasks carry verdicts, long lists stay fast."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from PIL import ImageEnhance

from app.common.settings import Settings
from app.contract import javascript
from app.contract.events import stream_schemas
from app.contract.examples import JOB_SPEC
from app.contract.problems import CODES
from app.contract.schemas import CheckpointList, In, Out, ProblemOut, Trace
from app.contract.schemas_system import LimitsOut, ModelList, Ready, RoomOut, TaskOut
from app.http.openapi import STREAMS
from app.main import create_app
from app.storage import tables
from app.storage.images import encode_png
from model.engine.messages import GenerationRequest
from model.engine.phases import ANSWER_ROOM
from tests.app.conftest import Server
from tests.fakes import FakeGeneration, Item, answer_items, step_items
from training.skills import Action, apply
from training.spec.spec import parse_spec
from training.world.world import EVAL_SEED_MIN, make_task

DOCS = (Path(__file__).parents[3] / "docs" / "api.md").read_text()


def schema(tmp_path: Path) -> dict[str, Any]:
    """The generated document."""
    return create_app(Settings(home=tmp_path), generation=FakeGeneration()).openapi()


def test_openapi_references_resolve(tmp_path: Path) -> None:
    document = schema(tmp_path)
    references = set(re.findall(r"'#/components/schemas/(\w+)'", str(document)))
    assert references <= document["components"]["schemas"].keys()
    assert "HTTPValidationError" not in str(document)


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def test_operation_ids_are_short_and_unique(tmp_path: Path) -> None:
    ids = [operation["operationId"] for operation in operations(schema(tmp_path))]
    assert {"create_trace", "get_trace", "list_traces", "trace_events", "create_job", "job_events"} <= set(ids)
    assert len(set(ids)) == len(ids)
    assert [id_ for id_ in ids if not re.fullmatch(r"[a-z]+(_[a-z]+){0,2}", id_)] == []


def test_json_bodies_have_valid_examples(tmp_path: Path) -> None:
    document = schema(tmp_path)
    shapes = document["components"]["schemas"]
    models = {model.__name__: model for base in (In, Out) for model in base.__subclasses__()}
    for operation in operations(document):
        answers = [answer for status, answer in operation["responses"].items() if status < "300"]
        for body in (operation.get("requestBody", {}), *answers):
            media = body.get("content", {}).get("application/json", {})
            names = re.findall(r"#/components/schemas/(\w+)", str(media.get("schema", {})))
            assert not media or media.keys() & {"example", "examples"} or len(names) == 1, operation["operationId"]
            if len(names) == 1:
                (example,) = shapes[names[0]]["examples"]
                models[names[0]].model_validate_json(json.dumps(example), strict=True)
    parse_spec(JOB_SPEC)


def test_event_streams_link_the_schema_of_their_events(tmp_path: Path) -> None:
    document = schema(tmp_path)
    found = {}
    for operation in operations(document):
        for answer in operation["responses"].values():
            media = answer.get("content", {}).get("text/event-stream")
            if media is not None:
                assert media["schema"] == {"type": "string"}  # generators would parse the text as one event
                found[operation["operationId"]] = media["x-event-schema"]["$ref"].rpartition("/")[2]
    assert found == {
        "create_trace": "TraceEvent",
        "create_branches": "TraceEvent",
        "trace_events": "TraceEvent",
        "group_events": "GroupEvent",
        "create_response": "ResponseEvent",
        "get_response": "ResponseEvent",
        "job_events": "JobEvent",
    }
    for name, events in STREAMS.items():
        for shape, content in stream_schemas(name, events).items():
            assert document["components"]["schemas"][shape].items() >= content.items()


def test_every_route_documents_its_problems(tmp_path: Path) -> None:
    for path, operations in schema(tmp_path)["paths"].items():
        for method, operation in operations.items():
            assert "421" in operation["responses"]
            assert f"{method.upper()} {path}`" in DOCS, f"{method.upper()} {path} is not in docs/api.md"


def test_reference_names_every_code() -> None:
    for code, (status, _title) in CODES.items():
        line = next(line for line in DOCS.splitlines() if line.startswith(f"| {status} |"))
        assert f"`{code}`" in line


def test_pages_read_the_same_words() -> None:
    written = (Path(__file__).parents[3] / "static" / "shared" / "contract.js").read_text()
    assert written == javascript.module(), "run `python -m app.contract.javascript > static/shared/contract.js`"


async def test_responses_match_the_documented_schemas(server: Server) -> None:
    trace = await server.finished((await server.create())["id"])
    Trace.model_validate(trace)
    get = server.client.get
    CheckpointList.model_validate((await get("/v1/checkpoints")).json())
    ModelList.model_validate((await get("/v1/models")).json())
    LimitsOut.model_validate((await get("/v1/limits")).json())
    Ready.model_validate((await get("/readyz")).json())
    ProblemOut.model_validate((await get("/v1/traces/x")).json())
    room = await server.client.post("/v1/limits", json={"question": "Where?", "images": 1})
    measured = RoomOut.model_validate(room.json())
    assert measured.prompt_tokens + measured.room_tokens == 768
    assert measured.room_images == (measured.room_tokens - ANSWER_ROOM) // 66
    metrics = (await get("/metrics")).text
    assert 'route="/v1/traces/{trace_id}"' in metrics
    assert trace["id"] not in metrics
    assert (await get("/redoc")).status_code != 200
    page = (await get("/docs")).text
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page)) <= {
        f"/static/swagger/{name}" for name in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
    }
    for name in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"):
        assert (await get(f"/static/swagger/{name}")).status_code == 200


async def test_task_is_reproducible_and_reveals_on_demand(server: Server) -> None:
    get = server.client.get
    plain = (await get("/v1/tasks", params={"slice": "operational", "seed": 5})).json()
    assert (await get("/v1/tasks", params={"slice": "operational", "seed": 5})).json() == plain
    TaskOut.model_validate(plain)
    assert "answer" not in plain
    assert "steps" not in plain
    assert (await get(plain["image"]["url"])).status_code == 200
    revealed = (await get("/v1/tasks", params={"slice": "operational", "seed": 5, "reveal": True})).json()
    assert revealed.items() >= plain.items()
    assert revealed["answer"] == make_task("operational", 5).answer
    for index, step in enumerate(revealed["steps"], 1):
        assert step["index"] == index
        assert (await get(step["image"]["url"])).status_code == 200
    drawn = (await get("/v1/tasks")).json()
    assert drawn["seed"] >= EVAL_SEED_MIN


@pytest.mark.parametrize("level", ["hard", 5])
async def test_task_of_a_level_names_it(server: Server, level: str | int) -> None:
    shown = (await server.client.get("/v1/tasks", params={"slice": "operational", "seed": 5, "level": level})).json()
    assert shown["task_id"] == f"operational-{level}-5"
    assert shown["question"] == make_task("operational", 5, level=level).question


async def test_task_trace_carries_the_checkers_verdict(server: Server, engine: FakeGeneration) -> None:
    task = make_task("operational", EVAL_SEED_MIN + 3)
    answers = [task.answer.upper() + ".", "no idea"]

    def script(request: GenerationRequest) -> list[Item]:
        answer = answers.pop(0)
        items: list[Item] = []
        for number, step in enumerate(task.steps, 1):
            picture = task.image if answer == "no idea" else step.image
            items += step_items(number, "Now what.", encode_png(picture))
        return [*items, *answer_items(answer)]

    engine.script = script
    shown = (await server.client.get("/v1/tasks", params={"slice": "operational", "seed": task.seed})).json()
    body = {"question": shown["question"], "images": [{"image_id": shown["image_id"]}], "task_id": shown["task_id"]}
    verdicts = []
    for _ in range(2):
        created = (await server.client.post("/v1/traces", json=body)).json()
        trace = await server.finished(created["id"])
        assert trace["steps"][0]["image"]["skill"] == task.steps[0].skill
        verdicts.append(trace["verdict"])
    steps = len(task.steps)
    assert verdicts[0] == {"answer": "right", "drawings_right": steps, "drawings_total": steps}
    assert verdicts[1]["answer"] == "wrong"
    assert verdicts[1]["drawings_right"] < steps
    right = (await server.client.get("/v1/traces", params={"verdict": "right", "slice": "operational"})).json()
    assert len(right["data"]) == 1


async def test_first_drawing_is_judged_against_the_seen_image(server: Server, engine: FakeGeneration) -> None:
    """As in the evaluation: the decode of the question's codes, kept over a pause, not the image itself."""
    task = make_task("natural", EVAL_SEED_MIN + 1)
    dimmed = ImageEnhance.Brightness(task.image).enhance(0.6)  # as a poor tokenizer might render it
    drawn = encode_png(apply(Action.parse(task.steps[0].action), dimmed))

    engine.script = lambda _request: [*step_items(1, "Now what.", drawn), *answer_items("x")]
    engine.seen_image = encode_png(dimmed)
    shown = (await server.client.get("/v1/tasks", params={"slice": "natural", "seed": task.seed})).json()
    body = {"question": shown["question"], "images": [{"image_id": shown["image_id"]}], "task_id": shown["task_id"]}
    counts = []
    for mode in ("auto", "step", "auto"):
        created = (await server.client.post("/v1/traces", json=body | {"mode": mode})).json()
        if mode == "step":
            await server.until(created["id"], "trace.paused")
            await server.client.post(f"/v1/traces/{created['id']}/continue", json={"mode": "auto"})
        counts.append((await server.finished(created["id"]))["verdict"]["drawings_right"])
        if mode == "step":
            engine.seen_image = None
    assert counts == [1, 1, 0]


async def test_page_of_ten_thousand_traces_is_fast(server: Server) -> None:
    trace = await server.finished((await server.create())["id"])
    t = tables.traces
    with server.services.db.write() as connection:
        row = dict(connection.execute(sa.select(t)).mappings().one())
        rows = [row | {"id": f"tr_0{n:019d}", "question": f"Where is number {n}?"} for n in range(10_000)]
        connection.execute(sa.insert(t), rows)
    for params in ({}, {"status": "completed"}, {"after": "tr_00000000000000005000"}):
        page = (await server.client.get("/v1/traces", params=params)).json()
        assert (len(page["data"]), page["has_more"]) == (20, True)
    page = (await server.client.get("/v1/traces", params={"q": "number 9999"})).json()
    assert [entry["question"] for entry in page["data"]] == ["Where is number 9999?"]
    with server.services.db.read() as connection:
        plan = connection.exec_driver_sql(
            "EXPLAIN QUERY PLAN SELECT id FROM traces WHERE status = 'completed' ORDER BY id DESC LIMIT 21"
        ).all()
    assert "ix_traces_status_id" in str(plan)
    assert trace["id"] > "tr_0"
