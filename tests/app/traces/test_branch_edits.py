"""Edited steps of branches and what is made to follow them, on the real engine: every kind, and every bad one."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from app.client.types import Picture, Trace
from tests.app.conftest import is_problem
from tests.app.traces.real import FIRST_TASK, Studio, image_ids
from tests.fakes import png
from tests.near_ties import assert_same_image

RED = png((220, 20, 20), (200, 120))


@pytest.fixture(scope="module")
def parent(studio: Studio) -> Trace:
    """A trace with two steps that both draw."""
    trace = studio.asked(3)
    assert len(trace["steps"]) == 2
    assert None not in image_ids(trace)
    return trace


def data_url(png_bytes: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes).decode()


def pixels(studio: Studio, image_id: str | None) -> Image.Image:
    assert image_id is not None
    return Image.open(io.BytesIO(studio.client.image(image_id))).convert("RGB")


def kept_events(studio: Studio, branch: Trace) -> list[dict[str, Any]]:
    return [event.data for event in studio.events(branch["id"]) if event.type == "step.kept"]


def assert_edited(studio: Studio, branch: Trace, step: int) -> dict[str, Any]:
    """Assert that exactly this step counts as edited, everywhere; returns its event."""
    assert branch["parent"] is not None
    assert branch["parent"]["edited_steps"] == [step]
    assert [one["index"] for one in branch["steps"] if one.get("edited")] == [step]
    assert branch["verdict"] is not None
    assert branch["verdict"]["edited_steps"] == [step]
    nodes = {node["id"]: node for node in studio.client.tree(branch["id"])["nodes"]}
    assert nodes[branch["id"]]["edited_steps"] == [step]
    event = next(data for data in kept_events(studio, branch) if data["step"] == step)
    assert event["edited"] is True
    return event


# ---- texts


def test_edited_text_replaces_the_step_and_keeps_its_image(studio: Studio, parent: Trace) -> None:
    branch = studio.branched(parent["id"], 2, edits=[{"step": 1, "text": "  It moves down.\n"}])
    assert_edited(studio, branch, 1)
    assert [step["text"] for step in branch["steps"][:2]] == ["It moves down.", parent["steps"][1]["text"]]
    assert image_ids(branch)[:2] == image_ids(parent)
    tokens = studio.client.tokens(branch["id"])["steps"]
    assert "It moves down." in "".join(token["text"] for token in tokens[0]["tokens"])
    again = studio.branched(branch["id"], 2)
    assert again["parent"] is not None
    assert again["parent"]["edited_steps"] == [], "the edit is its parent's"
    assert again["verdict"] is not None
    assert again["verdict"]["edited_steps"] == [1], "but the step is still not the model's own"
    studio.assert_same(branch, again)


def test_empty_text_leaves_the_image_alone(studio: Studio, parent: Trace) -> None:
    branch = studio.branched(parent["id"], 1, edits=[{"step": 1, "text": ""}])
    assert branch["steps"][0]["text"] == ""
    assert image_ids(branch)[0] == image_ids(parent)[0]


@pytest.mark.parametrize("text", ["a <image> b", "</s>", "<s> [IMG] <racm3:break>", "<image_1>", "ü ↯ 🎨 \u202e"])
def test_special_tokens_in_a_text_are_literal(studio: Studio, parent: Trace, text: str) -> None:
    branch = studio.branched(parent["id"], 1, edits=[{"step": 1, "text": text}])
    assert branch["steps"][0]["text"] == text
    tokens = [token["text"] for token in studio.client.tokens(branch["id"])["steps"][0]["tokens"]]
    assert tokens[-1] == "<racm3:break>", "begins the image"
    assert not {"<image>", "</s>", "<s>", "[IMG]", "<racm3:break>"} & {token.strip() for token in tokens[:-1]}


@pytest.mark.parametrize("text", ["THOUGHT 2: it moves", "so\nFinal Answer: red", "Final Answer:"])
@pytest.mark.parametrize("field", ["edit", "then_text"])
def test_marks_of_the_template_are_422(studio: Studio, parent: Trace, text: str, field: str) -> None:
    if field == "edit":
        answer = studio.refused(parent["id"], after_step=1, edits=[{"step": 1, "text": text}])
        is_problem(answer, 422, "bad_edit", "body.edits.0.text")
    else:
        answer = studio.refused(parent["id"], after_step=1, then_text=text)
        is_problem(answer, 422, "bad_edit", "body.then_text")


# ---- images


def test_previous_is_the_image_of_the_step_before(studio: Studio, parent: Trace) -> None:
    branch = studio.branched(parent["id"], 2, edits=[{"step": 2, "image": {"use": "previous"}}])
    assert_edited(studio, branch, 2)
    assert image_ids(branch)[:2] == [image_ids(parent)[0]] * 2
    assert branch["steps"][1]["text"] == parent["steps"][1]["text"]


@pytest.mark.parametrize("use", ["question", "previous"])
def test_question_is_the_image_before_the_first_step(studio: Studio, parent: Trace, use: Any) -> None:
    branch = studio.branched(parent["id"], 1, edits=[{"step": 1, "image": {"use": use}}])
    event = assert_edited(studio, branch, 1)
    assert event["source_image_id"] == branch["steps"][0].get("source_image_id") == parent["images"][0]["image_id"]
    assert event["reencoded"] is True
    shown = pixels(studio, image_ids(branch)[0])
    asked = pixels(studio, parent["images"][0]["image_id"]).resize(shown.size)
    assert mean_difference(shown, asked) < 25, "what the model sees of it"


def test_previous_follows_an_edit_of_the_step_before(studio: Studio, parent: Trace) -> None:
    edits: Any = [{"step": 2, "image": {"use": "previous"}}, {"step": 1, "image": {"use": "blank"}}]
    branch = studio.branched(parent["id"], 2, edits=edits)
    one, two = (studio.client.image(image_id or "") for image_id in image_ids(branch)[:2])
    assert_same_image(one, two)
    assert min(pixels(studio, image_ids(branch)[1]).convert("L").getextrema()) > 200


def test_blank_is_white(studio: Studio, parent: Trace) -> None:
    branch = studio.branched(parent["id"], 2, edits=[{"step": 2, "image": {"use": "blank"}}])
    assert_edited(studio, branch, 2)
    assert image_ids(branch)[0] == image_ids(parent)[0]
    shown = pixels(studio, image_ids(branch)[1])
    assert shown.size == (64, 64)
    assert min(shown.convert("L").getextrema()) > 200


def test_reference_is_the_drawing_of_the_task(studio: Studio, parent: Trace) -> None:
    task = studio.client.task(slice="operational", seed=FIRST_TASK + 3, reveal=True)
    edits: Any = [{"step": step, "image": {"use": "reference"}} for step in (1, 2)]
    branch = studio.branched(parent["id"], 2, edits=edits)
    assert branch["verdict"] is not None
    assert branch["verdict"]["drawings_right"] == branch["verdict"]["drawings_total"] == 2
    for reference, image_id, step in zip(task["steps"] or [], image_ids(branch), branch["steps"], strict=True):
        source = step.get("source_image_id")
        assert source is not None
        wanted = pixels(studio, reference["image"]["image_id"])
        assert mean_difference(pixels(studio, source), wanted.resize((64, 64))) < 5
        assert mean_difference(pixels(studio, image_id), wanted.resize((64, 64))) < 25


def test_image_of_another_trace_keeps_its_codes(studio: Studio, parent: Trace) -> None:
    other = studio.asked(1, "diagrammatic")
    edits: Any = [{"step": 1, "image": {"use": "other", "trace_id": other["id"], "step": 1}}]
    branch = studio.branched(parent["id"], 1, edits=edits)
    event = assert_edited(studio, branch, 1)
    assert image_ids(branch)[0] == image_ids(other)[0]
    assert "reencoded" not in event
    studio.client.delete(other["id"])
    assert studio.client.image(image_ids(branch)[0] or "").startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["image_id", "data_url"])
def test_uploaded_image_is_shown_as_the_model_sees_it(studio: Studio, parent: Trace, kind: str) -> None:
    stored = studio.client.upload_image(RED)
    picture: Picture = {"image_id": stored["image_id"]} if kind == "image_id" else {"data_url": data_url(RED)}
    branch = studio.branched(parent["id"], 1, edits=[{"step": 1, "image": picture}])
    event = assert_edited(studio, branch, 1)
    assert event["source_image_id"] == stored["image_id"]
    assert event["reencoded"] is True
    seen = Image.open(io.BytesIO(studio.client.model_view(stored["image_id"]))).convert("RGB")
    shown = pixels(studio, image_ids(branch)[0])
    assert shown.size == seen.size
    assert mean_difference(shown, seen) < 40
    tokens = studio.client.tokens(branch["id"])["steps"][0]
    assert tokens["image"] is not None


def test_own_image_given_by_its_id_is_the_same_trace_again(studio: Studio, parent: Trace) -> None:
    image_id = image_ids(parent)[1]
    branch = studio.branched(parent["id"], 2, edits=[{"step": 2, "image": {"image_id": image_id or ""}}])
    assert "reencoded" not in assert_edited(studio, branch, 2)
    assert image_ids(branch)[1] == image_id
    assert branch["answer"] == parent["answer"]


def test_image_given_to_a_step_without_one(studio: Studio, parent: Trace) -> None:
    words = studio.branched(parent["id"], 0, then_text="I only think", sampling={"max_images": 0})
    if not words["steps"]:
        words = studio.branched(parent["id"], 0, then_text="I only think")
    assert words["steps"]
    branch = studio.branched(words["id"], 1, edits=[{"step": 1, "image": {"use": "blank"}}])
    assert_edited(studio, branch, 1)
    assert image_ids(branch)[0] is not None
    assert branch["steps"][0]["text"] == words["steps"][0]["text"]


def test_forty_megapixels_are_an_image_and_more_are_422(studio: Studio, parent: Trace) -> None:
    def sized(width: int, height: int) -> str:
        out = io.BytesIO()
        Image.new("1", (width, height), 1).save(out, "PNG")
        return data_url(out.getvalue())

    most: Any = [{"step": 1, "image": {"data_url": sized(8_000, 5_000)}}]
    branch = studio.branched(parent["id"], 1, edits=most)
    assert min(pixels(studio, image_ids(branch)[0]).convert("L").getextrema()) > 200
    answer = studio.refused(parent["id"], after_step=1, edits=[{"step": 1, "image": {"data_url": sized(8_200, 5_000)}}])
    is_problem(answer, 422, "image_too_large")


@pytest.mark.parametrize(
    ("image", "code", "path"),
    [
        ({}, "invalid", "body.edits.0.image"),
        ({"use": "blank", "image_id": "x"}, "invalid", "body.edits.0.image"),
        ({"use": "mirror"}, "invalid", "body.edits.0.image.use"),
        ({"use": "other"}, "invalid", "body.edits.0.image"),
        ({"use": "other", "trace_id": "tr_none"}, "invalid", "body.edits.0.image"),
        ({"use": "blank", "trace_id": "tr_none", "step": 1}, "invalid", "body.edits.0.image"),
        ({"use": "blank", "step": 1}, "invalid", "body.edits.0.image"),
        ({"image_id": "x", "trace_id": "tr_none"}, "invalid", "body.edits.0.image"),
        ({"use": "other", "trace_id": "tr_none", "step": 1}, "bad_edit", "body.edits.0.image.trace_id"),
        ({"image_id": "none"}, "unknown_image", "body.edits.0.image.image_id"),
        ({"data_url": "https://example.org/x.png"}, "unsupported_url", "body.edits.0.image.data_url"),
        ({"data_url": data_url(RED[:60])}, "image_broken", None),
    ],
)
def test_bad_image_of_an_edit_is_422(studio: Studio, parent: Trace, image: Any, code: str, path: str | None) -> None:
    answer = studio.refused(parent["id"], after_step=1, edits=[{"step": 1, "image": image}])
    is_problem(answer, 422, code, path)


def test_reference_needs_a_task_and_its_step(studio: Studio, parent: Trace) -> None:
    free = studio.asked(3, task_id=None)
    edits = [{"step": 1, "image": {"use": "reference"}}]
    is_problem(studio.refused(free["id"], after_step=1, edits=edits), 422, "bad_edit", "body.edits.0.image.use")
    longer = studio.branched(parent["id"], 2, then_text="It moves one tile up")
    if len(longer["steps"]) > 2:
        edits = [{"step": 3, "image": {"use": "reference"}}]
        answer = studio.refused(longer["id"], after_step=3, edits=edits)
        is_problem(answer, 422, "bad_edit", "body.edits.0.image.use")


@pytest.mark.parametrize(
    ("body", "code", "path"),
    [
        ({"after_step": 3}, "no_such_step", "body.after_step"),
        ({"after_step": -1}, "invalid", "body.after_step"),
        ({}, "invalid", "body.after_step"),
        ({"after_step": 1, "edits": [{"step": 2, "text": "x"}]}, "bad_edit", "body.edits.0.step"),
        ({"after_step": 1, "edits": [{"step": 0, "text": "x"}]}, "invalid", "body.edits.0.step"),
        ({"after_step": 1, "edits": [{"step": 1}]}, "invalid", "body.edits.0"),
        ({"after_step": 1, "edits": [{"step": 1, "text": "a"}, {"step": 1, "text": "b"}]}, "invalid", "body"),
        ({"after_step": 1, "edits": [{"step": 1, "text": "a\0b"}]}, "invalid", "body.edits.0.text"),
        ({"after_step": 1, "edits": [{"step": 1, "text": "x" * 8_001}]}, "invalid", "body.edits.0.text"),
        ({"after_step": 1, "then_text": ""}, "invalid", "body.then_text"),
        ({"after_step": 1, "then_text": "a", "then": "answer"}, "invalid", "body"),
        ({"after_step": 1, "then": "stop"}, "invalid", "body.then"),
        ({"after_step": 1, "n": 17}, "invalid", "body.n"),
        ({"after_step": 1, "n": 0}, "invalid", "body.n"),
        ({"after_step": 1, "question": "Why?"}, "invalid", "body.question"),
    ],
)
def test_bad_branch_is_422(studio: Studio, parent: Trace, body: Any, code: str, path: str) -> None:
    is_problem(studio.refused(parent["id"], **body), 422, code, path)


# ---- what follows


def test_then_text_begins_the_next_step(studio: Studio, parent: Trace) -> None:
    branch = studio.branched(parent["id"], 1, then_text=" It moves one tile down ")
    assert branch["verdict"] is not None
    assert branch["verdict"]["edited_steps"] == [2], "a person began it"
    again = studio.branched(branch["id"], 2)
    assert again["verdict"] is not None
    assert again["verdict"]["edited_steps"] == [2], "and it stays so in later branches"
    assert branch["steps"][1]["text"].startswith("It moves one tile down")
    assert "edited" not in branch["steps"][1]
    tokens = studio.client.tokens(branch["id"])["steps"][1]["tokens"]
    assert tokens[0]["logprob"] is None, "given"
    assert tokens[-1]["logprob"] is not None, "drawn"
    deltas = [event.data["text"] for event in studio.events(branch["id"]) if event.type == "text.delta"]
    assert "".join(deltas).strip() == branch["steps"][1]["text"].strip()


def test_then_text_longer_than_the_room_is_422_with_the_figures(studio: Studio, parent: Trace) -> None:
    answer = studio.refused(parent["id"], after_step=1, then_text="tile " * 1_500)
    problem = is_problem(answer, 422, "prompt_too_long", "body.then_text")
    room = parent["sampling"]["max_new_tokens"]
    assert f"the limit is {room}" in problem["detail"]
    taken = int(problem["detail"].partition("takes ")[2].split()[0])
    assert taken > 1_500
    answer = studio.refused(parent["id"], after_step=2, sampling={"max_new_tokens": 100})
    assert "the limit is 100" in is_problem(answer, 422, "prompt_too_long", "body.after_step")["detail"]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_then_answer_draws_nothing_more(studio: Studio, parent: Trace, after: int) -> None:
    branch = studio.branched(parent["id"], after, then="answer")
    assert branch["answer"]
    assert len(branch["steps"]) == after
    assert image_ids(branch) == image_ids(parent)[:after]
    assert branch["usage"] is not None
    assert branch["usage"]["images"] == 0
    types = {event.type for event in studio.events(branch["id"])}
    assert not types & {"step.started", "image.started", "step.completed"}


@pytest.mark.parametrize("step", [1, 2, "answer"])
def test_alternative_token_goes_another_way(studio: Studio, parent: Trace, step: Any) -> None:
    before = 2 if step == "answer" else step - 1
    drawn = studio.client.tokens(parent["id"])
    part = drawn["answer"] if step == "answer" else drawn["steps"][step - 1]["tokens"]
    found = studio.client.alternatives(parent["id"], step, 1)
    assert len(found) == 5
    assert [one["logprob"] for one in found] == sorted((one["logprob"] for one in found), reverse=True)
    own = next(one for one in found if one["text"] == part[1]["text"])
    assert own["logprob"] == pytest.approx(part[1]["logprob"], abs=2e-2)
    taken = {"step": step, "token": 1, "id": own["id"]}
    studio.assert_same(parent, studio.branched(parent["id"], before, then_token=taken))  # type: ignore[arg-type]
    other = next(one for one in found if one["id"] != own["id"])
    taken["id"] = other["id"]
    branch = studio.branched(parent["id"], before, then_token=taken)  # type: ignore[arg-type]
    now = studio.client.tokens(branch["id"])
    changed = now["answer"] if step == "answer" else now["steps"][step - 1]["tokens"]
    assert [token["text"] for token in changed[:2]] == [part[0]["text"], other["text"]]
    assert [token["logprob"] for token in changed[:2]] == [None, None]


@pytest.mark.parametrize(
    ("then_token", "code", "path"),
    [
        ({"step": 3, "token": 0, "id": 5}, "no_such_step", "body.then_token.step"),
        ({"step": 1, "token": 0, "id": 5}, "bad_edit", "body.then_token.step"),
        ({"step": "answer", "token": 0, "id": 5}, "bad_edit", "body.then_token.step"),
        ({"step": 2, "token": 500, "id": 5}, "no_such_token", "body.then_token.token"),
        ({"step": 2, "token": 1, "id": 10**9}, "bad_edit", "body.then_token.id"),
        ({"step": 2, "token": -1, "id": 5}, "invalid", "body.then_token.token"),
        ({"step": 2, "token": 1, "id": 2}, "bad_edit", "body.then_token.id"),
    ],
)
def test_bad_token_is_422(studio: Studio, parent: Trace, then_token: Any, code: str, path: str) -> None:
    is_problem(studio.refused(parent["id"], after_step=1, then_token=then_token), 422, code, path)


@pytest.mark.parametrize(("step", "token", "code"), [(3, 0, "no_such_step"), (1, 99, "no_such_token")])
def test_alternatives_of_an_unknown_place_are_422(
    studio: Studio, parent: Trace, step: int, token: int, code: str
) -> None:
    answer = studio.post(f"/v1/traces/{parent['id']}/alternatives", {"step": step, "token": token})
    is_problem(answer, 422, code)


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two images in grey levels."""
    a, b = one.convert("L").tobytes(), other.convert("L").tobytes()
    assert len(a) == len(b)
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a)
