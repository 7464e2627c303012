"""The film of a trace: its frames, their times, and when there is none."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image, ImageSequence

from app.traces.records.film import ANSWER_MS, MAX_FRAMES, SIDE, STEP_MS, render
from tests.app.conftest import Server, is_problem
from tests.fakes import FakeGeneration, held

RED, BLUE = (220, 20, 20), (20, 20, 220)


def coloured(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


STORE = {
    "red": coloured(RED),
    "blue": coloured(BLUE),
    "wide": coloured(RED, (400, 100)),
    "tall": coloured(RED, (1, 90)),
}


def trace(**change: Any) -> dict[str, Any]:
    step = {"index": 1, "text": "I draw a box.", "image": {"image_id": "blue"}}
    return {"question": "What is <image_1>?", "images": [{"image_id": "red"}], "steps": [step], "answer": "4"} | change


def frames(film: bytes) -> list[tuple[Image.Image, int]]:
    with Image.open(io.BytesIO(film)) as opened:
        assert opened.format == "GIF"
        assert opened.info["loop"] == 0
        return [(one.convert("RGB"), one.info["duration"]) for one in ImageSequence.Iterator(opened)]


def middle(frame: Image.Image) -> tuple[int, ...]:
    found = frame.getpixel((SIDE // 2, SIDE // 2))
    assert isinstance(found, tuple)
    return found


def test_question_steps_and_answer_have_a_frame_each() -> None:
    shown = frames(render(trace(), STORE.__getitem__))
    assert [ms for _, ms in shown] == [STEP_MS, STEP_MS, ANSWER_MS]
    assert [middle(frame) for frame, _ in shown] == [RED, BLUE, BLUE]
    assert len({frame.size for frame, _ in shown}) == 1
    width, height = shown[0][0].size
    assert width == SIDE
    assert height > SIDE + 50
    captions = [frame.crop((0, SIDE, width, height)) for frame, _ in shown]
    assert all(caption.getextrema()[0][0] < 60 for caption in captions)  # dark text on white
    assert len({caption.tobytes() for caption in captions}) == 3


def test_step_without_an_image_keeps_the_one_before() -> None:
    steps = [{"index": 1, "text": "I think."}, {"index": 2, "text": "I draw.", "image": {"image_id": "blue"}}]
    shown = frames(render(trace(steps=steps, answer=None), STORE.__getitem__))
    assert [middle(frame) for frame, _ in shown] == [RED, RED, BLUE]


@pytest.mark.parametrize("image_id", ["wide", "tall"])
def test_image_is_whole_and_centred(image_id: str) -> None:
    shown = frames(render(trace(images=[{"image_id": image_id}]), STORE.__getitem__))
    assert middle(shown[0][0]) == RED
    assert shown[0][0].getpixel((2, 2)) != RED


@pytest.mark.parametrize(
    "text", ["", " \n\t", "word " * 2000, "x" * 8000, "赤" * 300, "a\0b\x1b[0m", "ends in a long wordwordword" * 40]
)
def test_any_text_fits_the_caption(text: str) -> None:
    shown = frames(render(trace(question=text, answer=text), STORE.__getitem__))
    width, height = shown[0][0].size
    assert height < SIDE + 260
    for frame, _ in shown:
        edge = frame.crop((width - 12, SIDE, width, height))
        assert edge.getextrema()[0] == (255, 255)


def test_long_trace_keeps_its_answer() -> None:
    steps = [
        {"index": index, "text": f"Step {index}.", "image": {"image_id": ("red", "blue")[index % 2]}}
        for index in range(1, 200)
    ]
    shown = frames(render(trace(steps=steps), STORE.__getitem__))
    assert len(shown) == MAX_FRAMES
    assert shown[-1][1] == ANSWER_MS


async def test_film_is_served_unless_the_trace_is_live(server: Server, engine: FakeGeneration) -> None:
    get = server.client.get
    is_problem(await get("/v1/traces/tr_nothing/film"), 404, "trace_not_found")
    engine.script = held
    made = await server.create()
    path = f"/v1/traces/{made['id']}/film"
    await server.until(made["id"], "step.completed")
    is_problem(await get(path), 409, "trace_live")
    engine.go("end")
    await server.finished(made["id"])
    film = await get(path)
    assert film.status_code == 200
    assert film.headers["content-type"] == "image/gif"
    assert made["id"] in film.headers["content-disposition"]
    assert [ms for _, ms in frames(film.content)] == [STEP_MS, STEP_MS, ANSWER_MS]


async def test_paused_trace_has_a_film_without_an_answer(server: Server) -> None:
    made = await server.create(mode="step")
    await server.until(made["id"], "trace.paused")
    film = await server.client.get(f"/v1/traces/{made['id']}/film")
    assert [ms for _, ms in frames(film.content)] == [STEP_MS, STEP_MS]
