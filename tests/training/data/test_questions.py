"""Questions from files of every kind: text, images, options and the reference answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.checkpoint.checkpoint import load_checkpoint
from training.data.questions import Question, image_codes, read_questions
from training.data.rows import Rejection, SampleError
from training.data.traces import TokenIds, read_traces
from training.spec.spec import JsonlData, M3CoTData, OmniBenchData


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_m3cot_questions_have_options_without_rationale(tmp_path: Path) -> None:
    row = {"id": "a", "question": "What burns?", "choices": ["wood", "stone"], "answer": "A", "domain": "science"}
    path = written(
        tmp_path / "m.jsonl", row, {**row, "id": "b", "answer": "Z"}, {**row, "id": "c", "image": "none.png"}
    )
    found = list(read_questions(M3CoTData(path=path)))
    assert isinstance(found[0], Question)
    assert found[0].text == "What burns?\n(A) wood\n(B) stone"
    assert (found[0].answer, found[0].choices, found[0].slice) == ("(A) wood", ("wood", "stone"), "science")
    assert [f.code for f in found[1:] if isinstance(f, Rejection)] == ["broken_row", "missing_picture"]


def test_traces_are_questions_without_steps(tmp_path: Path) -> None:
    row = {
        "Question": "<image_start>[p]<image_end>Where?",
        "Text Reasoning Trace": "I look.",
        "Final Answer": "left",
        "p": [5, 6],
    }
    (question,) = read_questions(JsonlData(path=written(tmp_path / "t.jsonl", row)))
    assert isinstance(question, Question)
    assert (question.text, question.answer, question.images) == ("Where?", "left", (TokenIds((5, 6)),))


def own(**changes: Any) -> dict[str, Any]:
    return {"question": "How many stars?", "image": "p.png", "answer": 3, **changes}


@pytest.mark.parametrize(
    "row",
    [
        {"Question": "How many stars?", "Final Answer": "3", "problem_image_1": "p.png"},
        {"Question": "<image_start>[mine]<image_end>How many stars?", "Final Answer": "3", "mine": "p.png"},
        own(),
        own(image=None, images=["p.png"], answer="3", slice=None),
        own(image={"path": "p.png", "bytes": None}),
        own(question="<image>How many stars?"),
    ],
)
def test_question_needs_no_trace(row: dict[str, Any], tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "p.png")
    (question,) = read_questions(JsonlData(path=written(tmp_path / "own.jsonl", row)))
    assert isinstance(question, Question), question
    assert (question.text, question.answer, len(question.images)) == ("How many stars?", "3", 1)
    (trace,) = read_traces(tmp_path / "own.jsonl")
    assert isinstance(trace, Rejection)
    assert trace.code == "empty_reasoning"


def test_several_images_keep_their_places(tmp_path: Path) -> None:
    for name in ("red", "blue"):
        Image.new("RGB", (8, 8), name).save(tmp_path / f"{name}.png")
    row = own(question="Is <image_2> like <image_1>?", image=None, images=["red.png", "blue.png"])
    (question,) = read_questions(JsonlData(path=written(tmp_path / "own.jsonl", row)))
    assert isinstance(question, Question)
    assert question.text == "Is <image_2> like <image_1>?"
    assert [image.getpixel((0, 0)) for image in question.images if isinstance(image, Image.Image)] == [
        (255, 0, 0),
        (0, 0, 255),
    ]


def test_own_options_are_shown_once(tmp_path: Path) -> None:
    listed = own(image=None, question="Which?\n(A) one\n(B) two", choices=["one", "two"])
    apart = own(image=None, question="Which?", choices=["one", "two"], answer="B")
    found = list(read_questions(JsonlData(path=written(tmp_path / "own.jsonl", listed, apart))))
    assert [q.text for q in found if isinstance(q, Question)] == ["Which?\n(A) one\n(B) two"] * 2
    assert [q.choices for q in found if isinstance(q, Question)] == [("one", "two")] * 2


def test_ids_are_unique_within_a_file(tmp_path: Path) -> None:
    rows = [own(image=None, id=name) for name in ("a", "b", "a", "", "")]
    written(tmp_path / "1.jsonl", *rows)
    written(tmp_path / "2.jsonl", rows[0])
    found = list(read_questions(JsonlData(path=str(tmp_path))))
    assert [(r.where, r.code, r.detail) for r in found if isinstance(r, Rejection)] == [
        ("1.jsonl:3", "duplicate_id", "line 1 has the id 'a', too")
    ]
    names = [q.question_id for q in found if isinstance(q, Question)]
    assert names == ["a", "b", "1.jsonl:4", "1.jsonl:5", "a"]


def test_m3cot_questions_have_placeholders(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "p.png")
    row = {"id": "a", "question": "What burns in <image>?", "choices": ["wood", "<image>"], "answer": "A"}
    good = {**row, "image": "p.png", "choices": ["wood", "stone"]}
    path = written(tmp_path / "m.jsonl", good, {**row, "image": "p.png"}, {**good, "image": None})
    found = list(read_questions(M3CoTData(path=path)))
    assert isinstance(found[0], Question)
    assert found[0].text.startswith("What burns in <image_1>?\n(A)")
    assert [(f.where, f.code) for f in found[1:] if isinstance(f, Rejection)] == [
        ("m.jsonl:2", "bad_place"),
        ("m.jsonl:3", "bad_place"),
    ]


def test_omni_bench_questions_know_their_slice(tmp_path: Path) -> None:
    path = written(tmp_path / "chartqa.jsonl", {"image": "<TLTS>", "question": "How many?", "answer": "3"})
    (question,) = read_questions(OmniBenchData(path=path))
    assert isinstance(question, Question)
    assert (question.slice, question.source, question.where) == ("structured", "chartqa", "chartqa.jsonl:1")


def test_images_become_codes_or_rejections(tiny_checkpoint: Path) -> None:
    tiny = load_checkpoint(tiny_checkpoint)
    assert tiny.vq is not None
    ids = tiny.vocab.image_ids((1, 2, 3, 4))
    for given in (ids, ids[1:-1]):
        assert image_codes(TokenIds(tuple(given)), tiny.template, tiny.vq) == (1, 2, 3, 4)
    assert len(image_codes(Image.new("RGB", (40, 20), "red"), tiny.template, tiny.vq)) == 4
    for wrong in (ids[1:], [*ids[1:-2], 0], []):
        with pytest.raises(SampleError):
            image_codes(TokenIds(tuple(wrong)), tiny.template, tiny.vq)
