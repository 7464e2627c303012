"""The check of a data set: counts by method, every rejection, a preview, in bounded time and memory."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.image_files import encoded, gradient
from training.data import check
from training.data.check import PREVIEW_IMAGES, PREVIEW_ROWS, check_data, check_into, report_for
from training.data.questions import read_questions
from training.data.rows import DataError, Rejection
from training.data.traces import read_traces
from training.spec.hyperparameters import ZeroHyperparameters
from training.spec.spec import JsonlData
from training.zero.chain_sources import read_chains

PNG = base64.b64encode(encoded(gradient(), "PNG")).decode()
OWN = {"question": "How many?", "image": PNG, "answer": 3, "slice": "stars"}
TRACE = {
    "Question": "<image_start>[problem_image_1]<image_end> Where?",
    "Text Reasoning Trace": "THOUGHT 1: I look.<image_start>[reasoning_image_1]<image_end>\nTHOUGHT 2: It is left.",
    "Final Answer": "left",
    "problem_image_1": PNG,
    "reasoning_image_1": PNG,
}
ALL = ["pesft", "perpo", "zero", "benchmark"]


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def checked(path: Path, method: str | None = None, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rejections: list[dict[str, Any]] = []
    return report_for(check_data(path, on_rejection=rejections.append, **more).to_json(), method), rejections


def test_every_method_has_its_own_count(tmp_path: Path) -> None:
    two = {**TRACE, "Question": "Where?", "problem_image_2": PNG}
    report, rejections = checked(written(tmp_path / "a.jsonl", OWN, TRACE, two, "{", {**OWN, "answer": ""}))
    assert report["rows"] == 5
    assert report["usable_for"] == {"pesft": 2, "perpo": 3, "zero": 1, "benchmark": 3}
    assert [(r["row"], r["code"], r["methods"]) for r in rejections] == [
        (1, "empty_reasoning", ["pesft", "zero"]),
        (3, "too_many_pictures", ["zero"]),
        (4, "broken_line", ALL),
        (5, "empty_answer", ALL),
    ]
    assert report["rejected"]["rows"] == 4
    assert report["rejected"]["first"] == rejections
    assert report["most_images"] == 2


def test_method_limits_the_rejections(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", OWN, "{", {**OWN, "id": 1}, {**OWN, "id": 1})
    report, _ = checked(path, "perpo")
    assert report["method"] == "perpo"
    assert report["rejected"]["reasons"] == {"broken_line": 1, "duplicate_id": 1}
    assert report["rejected"]["rows"] == 2
    assert checked(path, "pesft")[0]["rejected"]["reasons"] == {"empty_reasoning": 3, "broken_line": 1}


def test_counts_are_those_of_the_jobs(tmp_path: Path) -> None:
    from tests.training.data.test_row_faults import ODD

    rows = [{**good, field: value} for good in (OWN, TRACE) for field in good for value in ODD]
    path = written(tmp_path / "a.jsonl", OWN, TRACE, *rows)
    readers = {
        "pesft": read_traces(path, 16),
        "perpo": read_questions(JsonlData(path=str(path)), 16),
        "zero": read_chains(JsonlData(path=str(path)), 0, ZeroHyperparameters(), 16),
    }
    report, rejections = checked(path)
    for method, items in readers.items():
        expected = [item.where for item in items if isinstance(item, Rejection)]
        assert [r["where"] for r in rejections if method in r["methods"]] == expected
        assert report["usable_for"][method] == report["rows"] - len(expected)


def test_preview_shows_the_first_usable_rows(tmp_path: Path) -> None:
    kept: dict[str, Image.Image] = {}
    path = written(tmp_path / "a.jsonl", "{", TRACE, *[OWN] * PREVIEW_ROWS)
    report, _ = checked(path, keep_image=kept.__setitem__)
    assert [row["where"] for row in report["preview"]] == [f"a.jsonl:{k}" for k in range(2, PREVIEW_ROWS + 2)]
    trace, own = report["preview"][:2]
    assert [step["text"] for step in trace["steps"]] == ["I look.", "It is left."]
    assert (trace["usable_for"], own["usable_for"]) == (ALL, ["perpo", "benchmark"])
    assert (own["question"], own["answer"], own["slice"]) == ("How many?", "3", "stars")
    assert {image.size for image in kept.values()} == {(check.IMAGE_SIZE, check.IMAGE_SIZE)}
    assert set(kept) >= {trace["images"][0]["file"], trace["steps"][0]["image"]["file"], own["images"][0]["file"]}


def test_fifty_images_are_counted_and_cut(tmp_path: Path) -> None:
    row = {"question": "Which?", "images": [PNG] * 50, "answer": "1"}
    report, rejections = checked(written(tmp_path / "a.jsonl", row))
    (shown,) = report["preview"]
    assert (len(shown["images"]), shown["images_total"], report["most_images"]) == (PREVIEW_IMAGES, 50, 50)
    assert report["usable_for"]["perpo"] == 1
    assert [r["code"] for r in rejections] == ["empty_reasoning"]


def test_only_preview_images_are_decoded(tmp_path: Path) -> None:
    cut = base64.b64encode(encoded(gradient(), "PNG")[:-40]).decode()
    text = base64.b64encode(b"no image, however long it may be " * 9).decode()
    rows = [{**OWN, "image": cut}, *[OWN] * PREVIEW_ROWS, {**OWN, "image": cut}, {**OWN, "image": text}]
    _, rejections = checked(written(tmp_path / "a.jsonl", *rows))
    assert [r["row"] for r in rejections if r["code"] == "broken_picture"] == [1, len(rows)]


@pytest.mark.parametrize(
    ("data", "line", "words"),
    [
        (json.dumps(OWN).encode("utf-16"), 1, "UTF-16"),
        (json.dumps({**OWN, "answer": "é"}, ensure_ascii=False).encode("latin-1"), 1, "not UTF-8"),
        (json.dumps(OWN).encode() + b"\n" + b'{"question": "\xff"}', 2, "not UTF-8"),
        (json.dumps(OWN).encode() + b'\n{"question": "\\ud800"}', 2, "half of a character"),
        (b"question,answer\nWhere?,left\n", 1, "no JSON"),
    ],
)
def test_wrong_encodings_name_their_line(data: bytes, line: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    _, rejections = checked(tmp_path / "a.jsonl")
    broken = [r for r in rejections if r["code"] == "broken_line"]
    assert broken[0]["row"] == line
    assert words in broken[0]["detail"]


def test_nested_lists_of_tables_are_rejected_by_row(tmp_path: Path) -> None:
    columns = {"question": ["?"] * 4, "answer": ["a"] * 4, "images": [[[["x"]]], [], [[[PNG]]], None]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    report, rejections = checked(tmp_path / "a.parquet", "perpo")
    assert [(r["where"], r["code"]) for r in rejections if "perpo" in r["methods"]] == [
        ("a.parquet:1", "broken_picture"),
        ("a.parquet:3", "broken_picture"),
    ]
    assert report["usable_for"]["perpo"] == 2
    question = {"question": [["Where?"]], "answer": [["left"]]}
    pq.write_table(pa.table(question), tmp_path / "a.parquet")
    assert [r["code"] for r in checked(tmp_path / "a.parquet")[1]] == ["wrong_type"]


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    line = json.dumps(OWN) + "\n"

    def peak(rows: int) -> int:
        (tmp_path / "a.jsonl").write_text(line * rows)
        tracemalloc.start()
        try:
            check_data(tmp_path / "a.jsonl")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(2_000) < peak(100) + 1_000_000


def test_time_limit_ends_with_partial_counts(tmp_path: Path) -> None:
    report, _ = checked(written(tmp_path / "a.jsonl", *[OWN] * 9), seconds=-1.0)
    assert (report["complete"], report["rows"], report["usable_for"]["perpo"]) == (False, 0, 0)


def test_check_writes_report_and_all_rejections(tmp_path: Path) -> None:
    path, out = written(tmp_path / "a.jsonl", *["{"] * 99, OWN), tmp_path / "out"
    out.mkdir()
    found = check_into(path, out)
    assert json.loads((out / "report.json").read_text()) == found
    assert len(found["first"]["any"]) == check.FIRST
    assert len((out / "rejections.jsonl").read_text().splitlines()) == 100


def test_folder_without_data_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match="no file"):
        check_data(tmp_path)
    out = tmp_path.parent / f"{tmp_path.name}-out"
    out.mkdir()
    command = [sys.executable, "-m", "training.data.check", str(tmp_path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "no file" in done.stderr) == (2, True)
