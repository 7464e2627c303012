"""Omni-Bench's files: images in every form, slices by data set, and rejections."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from training.data.omni_bench import BenchQuestion, options_in, read_omni_bench, slice_of
from training.data.rows import Rejection


def encoded(colour: str, form: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, form)
    return base64.b64encode(buffer.getvalue()).decode()


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_images_are_read_from_every_form(tmp_path: Path) -> None:
    url = "data:image/jpeg;base64," + encoded("blue", "JPEG")
    single = [
        {"image": encoded("red"), "question": "a?", "answer": "red", "id": 7},
        {"image": url, "question": "b?", "answer": "blue", "id": 8},
        {"image": "<TLTS>", "question": "c?", "answer": "none", "id": 9},
    ]
    written(tmp_path / "vstar_test.parquet", single)
    several = [{"image": [encoded("red"), "<TLTS>", url], "question": "d?", "answer": "3", "level": "hard"}]
    written(tmp_path / "vic_bench-00000-of-00001.parquet", several)
    found = list(read_omni_bench(tmp_path))
    assert all(isinstance(item, BenchQuestion) for item in found)
    by_text = {item.text: item for item in found if isinstance(item, BenchQuestion)}
    assert [len(by_text[q].images) for q in ("a?", "b?", "c?", "d?")] == [1, 1, 0, 2]
    assert by_text["a?"].images[0].convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert {q: item.slice for q, item in by_text.items()} == {
        "a?": "natural",
        "b?": "natural",
        "c?": "natural",
        "d?": "operational",
    }
    assert by_text["a?"].question_id == "7"
    assert by_text["d?"].question_id == "vic_bench-00000-of-00001.parquet:1"
    assert by_text["d?"].extra["level"] == "hard"


def test_placeholders_are_numbered(tmp_path: Path) -> None:
    red, blue = encoded("red"), encoded("blue")
    rows = [
        {"image": [red, blue], "question": "Figure A: <image> Figure B: <image>", "answer": "A"},
        {"image": [red, blue], "question": "Is <image_2> like <image>?", "answer": "no"},
        {"image": [red, blue], "question": "<image>\n<image>\nWhich?", "answer": "A"},
        {"image": red, "question": "Is <image_1> <image_1>?", "answer": "yes"},
        {"image": [red, blue], "question": "Is it <image_2>?", "answer": "yes"},
        {"image": red, "question": "<image> and <image>", "answer": "x"},
        {"image": red, "question": "Look at <image_2>", "answer": "x"},
        {"image": "<TLTS>", "question": "Look at <image>", "answer": "x"},
        {"image": red, "question": "<image>", "answer": "x"},
    ]
    found = list(read_omni_bench(jsonl(tmp_path / "vstar.jsonl", rows)))
    assert [f.text for f in found if isinstance(f, BenchQuestion)] == [
        "Figure A: <image_1> Figure B: <image_2>",
        "Is <image_2> like <image_1>?",
        "Which?",  # images come first anyway
        "Is <image_1> <image_1>?",
        "Is it <image_2>?",
    ]
    assert [(f.where, f.code) for f in found if isinstance(f, Rejection)] == [
        ("vstar.jsonl:6", "bad_place"),
        ("vstar.jsonl:7", "bad_place"),
        ("vstar.jsonl:8", "bad_place"),
        ("vstar.jsonl:9", "empty_question"),
    ]


def test_incomplete_rows_are_rejected(tmp_path: Path) -> None:
    rows = [
        {"image": "<TLTS>", "question": "", "answer": "x"},
        {"image": "<TLTS>", "question": "q", "answer": None},
        {"image": base64.b64encode(b"junk" * 400).decode(), "question": "q", "answer": "x"},
        {"image": "<TLTS>", "question": "q", "answer": "x"},
    ]
    found = list(read_omni_bench(written(tmp_path / "chartqa.parquet", rows)))
    assert [(f.where, f.code) for f in found if isinstance(f, Rejection)] == [
        ("chartqa.parquet:1", "empty_question"),
        ("chartqa.parquet:2", "empty_answer"),
        ("chartqa.parquet:3", "broken_picture"),
    ]
    assert isinstance(found[3], BenchQuestion)


@pytest.mark.parametrize(
    ("source", "slice_"),
    [
        ("V*", "natural"),
        ("vstar_bench", "natural"),
        ("ArxivQA", "structured"),
        ("ChartQA", "structured"),
        ("Geometry3K", "diagrammatic"),
        ("MathVista-testmini", "diagrammatic"),
        ("ViC-Bench", "operational"),
        ("Mine", "Mine"),
    ],
)
def test_six_data_sets_make_four_slices(source: str, slice_: str) -> None:
    assert slice_of(source) == slice_


def test_data_set_column_overrides_file_name(tmp_path: Path) -> None:
    rows = [{"image": "<TLTS>", "question": "q", "answer": 4, "dataset": "Geometry3K"}]
    (item,) = read_omni_bench(written(tmp_path / "all.parquet", rows))
    assert isinstance(item, BenchQuestion)
    assert (item.source, item.slice, item.answer) == ("Geometry3K", "diagrammatic", "4")


def test_consecutive_options_are_read_from_question() -> None:
    assert options_in("Which?\n(A) red\n(B) blue \nAnswer with a letter.") == ("red", "blue")
    assert options_in("Which?\nA. 3\nB. 4\nC. 5") == ("3", "4", "5")
    assert options_in("A. Smith wrote it.\nWho?") == ()
    assert options_in("(A) red\n(C) blue") == ()
