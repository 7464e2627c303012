"""Faults of rows: each rejects its row with location and reason, in every source, and reading continues."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.image_files import bomb, encoded, gradient, noise
from tests.training.contexts import events_of, job
from training.benchmark import job as benchmark_job
from training.data.omni_bench import read_omni_bench
from training.data.questions import read_questions
from training.data.row_images import MAX_DETAIL
from training.data.rows import Rejection, open_value
from training.data.traces import ANSWER, QUESTION, REASONING, read_traces
from training.jobs.context import JobContext, JobError
from training.perpo import job as perpo
from training.pesft import job as pesft
from training.spec.hyperparameters import ZeroHyperparameters
from training.spec.spec import JsonlData, M3CoTData, OmniBenchData, ZebraCoTData
from training.zero import job as zero
from training.zero.chain_sources import read_chains

PNG = base64.b64encode(encoded(gradient(), "PNG")).decode()
TRACE = {
    QUESTION: "<image_start>[problem_image_1]<image_end> Where is it?",
    REASONING: "THOUGHT 1: I look.<image_start>[reasoning_image_1]<image_end>",
    ANSWER: "left",
    "problem_image_1": PNG,
    "reasoning_image_1": PNG,
}
M3COT = {
    "id": "1",
    "question": "Which?",
    "choices": ["a", "b"],
    "answer": "B",
    "rationale": "One. Two.",
    "domain": "x",
    "image": PNG,
    "split": "train",
}
OWN = {"id": "1", "question": "How many?", "images": [PNG], "answer": 3, "choices": ["1", "3"], "slice": "x"}
OMNI = {"question": "How many?", "answer": "3", "image": PNG, "choices": ["1", "3"]}

SOURCES: dict[str, tuple[dict[str, Any], Callable[[Path], Iterator[Any]]]] = {
    "traces": (TRACE, lambda path: read_traces(path, 16)),
    "jsonl": (TRACE, lambda path: read_questions(JsonlData(path=str(path)), 16)),
    "own questions": (OWN, lambda path: read_questions(JsonlData(path=str(path)), 16)),
    "zebra_cot": (TRACE, lambda path: read_questions(ZebraCoTData(path=str(path)), 16)),
    "m3cot": (M3COT, lambda path: read_questions(M3CoTData(path=str(path)), 16)),
    "m3cot chains": (M3COT, lambda path: read_chains(M3CoTData(path=str(path)), 0, ZeroHyperparameters(), 16)),
    "trace chains": (TRACE, lambda path: read_chains(JsonlData(path=str(path)), 0, ZeroHyperparameters(), 16)),
    "omni_bench": (OMNI, lambda path: read_omni_bench(path, 16)),
    "omni_bench questions": (OMNI, lambda path: read_questions(OmniBenchData(path=str(path)), 16)),
}
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\0",
    "x\0y.png",
    "A" * 300,
    "é" * 300,
    "a/" * 3000,
    "../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "/proc/self/mem",
    ".",
    "/",
    "~",
    "C:\\x.png",
    "data:image/png;base64,",
    "data:image/png;base64,!!!!",
    "data:text/html,x",
    "http://127.0.0.1:1/x.png",
    [],
    [None],
    [[]],
    [[[None]]],
    ["a", None],
    [10**30],
    [0.5],
    {},
    {"bytes": None},
    {"path": None},
    {"bytes": {"path": "x"}},
    {"bytes": 5},
    {"path": []},
    {"bytes": "A" * 300, "path": "\0"},
    {"a": {"b": [{}]}},
    "<image_start>[" + "9" * 5000 + "]<image_end>",
    "\u202e\ufeff\u2028",
    base64.b64encode(b"II*\0").decode(),
]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("source", SOURCES)
def test_no_field_value_ends_the_reading(source: str, tmp_path: Path) -> None:
    good, read = SOURCES[source]
    own = {"id": None} if "id" in good else {}  # ids must differ
    rows = [{**good, **own, field: value} for field in good for value in ODD]
    good = {**good, **own}
    rows += [{key: value for key, value in good.items() if key != field} for field in good]
    (tmp_path / "folder.png").mkdir()
    found = list(read(write(tmp_path / "a.jsonl", good, *rows, good)))
    assert len(found) == len(rows) + 2
    rejections = [item for item in found if isinstance(item, Rejection)]
    assert not isinstance(found[0], Rejection)
    assert not isinstance(found[-1], Rejection)
    assert len(rejections) > len(rows) / 4
    for number, item in enumerate(found, 1):
        if isinstance(item, Rejection):
            assert item.where == f"a.jsonl:{number}"
            assert 0 < len(item.detail) <= MAX_DETAIL + 100


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "null",
        "3",
        '"text"',
        "[" * 100_000,
        '{"a": ' * 100_000,
        '{"question": "\\ud800"}',
        "9" * 10_000,
        "\x00",
        '{"question": NaN',
        '{"Question": 1e999}',
    ],
)
def test_broken_line_is_one_rejection(source: str, line: str, tmp_path: Path) -> None:
    good, read = SOURCES[source]
    found = list(read(write(tmp_path / "a.jsonl", good, line, good)))
    repeated = source == "own questions"  # the third row has the first one's id
    assert [isinstance(item, Rejection) for item in found] == [False, True, repeated]
    assert found[1].where == "a.jsonl:2"


@pytest.mark.parametrize("source", SOURCES)
def test_tables_of_any_types_are_read(source: str, tmp_path: Path) -> None:
    good, read = SOURCES[source]
    columns: list[list[Any]] = [
        [1, 2],
        [0.5, None],
        [True, False],
        [b"\xff\xfe", b""],
        [[1], []],
        [{"bytes": b"", "path": None}] * 2,
        [datetime(2024, 1, 1), None],
        [Decimal("1.5"), None],
        [[[None]], None],
        [None, None],
        ["x", None],
    ]
    for number, (field, column) in enumerate((f, c) for f in good for c in columns):
        table = {name: [value, value] for name, value in good.items()} | {field: column}
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table(table), path)
        assert len(list(read(path))) == 2


def test_invalid_text_rejects_its_table_row(tmp_path: Path) -> None:
    words = pa.array([b"good", b"\xff\xfe", b"good"]).view(pa.utf8())
    table = pa.table({"question": words, "answer": ["1", "2", "3"], "image": [PNG] * 3})
    pq.write_table(table, tmp_path / "a.parquet")
    found = list(read_omni_bench(tmp_path / "a.parquet"))
    assert [isinstance(item, Rejection) for item in found] == [False, True, False]
    assert (found[1].where, found[1].code) == ("a.parquet:2", "broken_row")


def test_files_without_an_image_are_described(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "out.png").symlink_to("/etc/hostname")
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.png").write_text("<!doctype html><title>404</title>")
    (tmp_path / "drawing.jpg").write_bytes(encoded(gradient(), "EPS"))
    (tmp_path / "scan.png").write_bytes(encoded(gradient(), "TIFF"))
    (tmp_path / "narrow.png").write_bytes(encoded(Image.new("L", (1, 9000)), "PNG"))
    (tmp_path / "huge.png").write_bytes(bomb(7000, 6000))
    names = {
        "pipe.png": "not a regular file",
        "folder.png": "a folder",
        "loop.png": "loop.png",
        "out.png": "no image",
        "empty.png": "an empty file",
        "page.png": "an HTML page",
        "drawing.jpg": "EPS",
        "scan.png": "TIFF",
        "narrow.png": "9000 : 1",
        "huge.png": "too many",
        "gone.png": "no image",
        "x" * 300 + ".png": "no image",
    }
    rows = [{**OMNI, "image": name} for name in names]
    found = list(read_omni_bench(write(tmp_path / "a.jsonl", *rows)))
    for number, (words, item) in enumerate(zip(names.values(), found, strict=True), 1):
        assert isinstance(item, Rejection)
        assert item.where == f"a.jsonl:{number}"
        assert item.code in ("missing_picture", "broken_picture")
        assert words in item.detail


def test_short_base64_is_an_image(tmp_path: Path) -> None:
    for side in (1, 2, 4, 8, 12):
        for kind in ("PNG", "GIF", "BMP", "WEBP"):
            data = encoded(noise(side, side), kind)
            for text in (base64.b64encode(data).decode(), base64.encodebytes(data).decode()):
                assert open_value(text, tmp_path).size == (side, side)


def test_images_are_resized_on_reading(tmp_path: Path) -> None:
    photo = encoded(gradient(900, 600), "JPEG")
    (tmp_path / "photo.jpg").write_bytes(photo)
    for value in ("photo.jpg", base64.b64encode(photo).decode(), {"bytes": photo}, gradient(900, 600)):
        assert open_value(value, tmp_path, 32).size == (32, 32)
    for source, (good, read) in SOURCES.items():
        row = {key: "photo.jpg" if value == PNG else value for key, value in good.items()}
        (item,) = read(write(tmp_path / f"{source}.jsonl", row))
        images = [item.image] if hasattr(item, "image") else [*item.images]
        images += [step.image for step in getattr(item, "steps", ()) if hasattr(step, "image")]
        assert [image.size for image in images] == [(16, 16)] * len(images)
        assert images


def test_training_reads_images_like_uploads(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_value(encoded(gradient(40, 20), "JPEG", exif=exif), tmp_path).size == (20, 40)
    deep = encoded(Image.new("I;16", (4, 4), 255), "PNG")
    assert open_value(deep, tmp_path).getpixel((0, 0)) == (1, 1, 1)


FIFTY = {"question": "Which of these?", "images": [PNG] * 50, "answer": "1"}
HOSTILE: list[Any] = [
    "{",
    "\x00",
    '{"question": "\\ud800", "answer": "a"}',
    FIFTY,
    {**OWN, "id": None, "question": "x" * 1_000_000},
    {**OWN, "id": None, "choices": ["<image>", "<image_2>"]},
    {**OWN, "id": None, "question": "<image_9> and <image_start>[nothing]<image_end>?"},
    {**OWN, "id": None, "images": [[1, 2, 10**30]]},
    {**OWN, "id": None, "images": PNG[:-9]},
    {**OWN, "id": None, "images": PNG.replace("A", "!", 1)},
    {**OWN, "id": None, "slice": "a/b\n" * 1_000, "answer": "<image>\0" * 9},
    *({**OWN, "id": None, "images": value} for value in ODD),
]


@pytest.mark.parametrize("method", ["perpo", "benchmark"])
def test_hostile_rows_cost_only_themselves(method: str, tmp_path: Path, tiny_checkpoint: Path) -> None:
    path = write(tmp_path / "a.jsonl", *HOSTILE, OWN)
    data = {"source": "jsonl", "path": str(path), "num_samples": 1_000}
    small = {"steps": 1, "prompts_per_step": 1, "rollouts_per_prompt": 2, "max_new_tokens": 4, "filter_metric": "none"}
    hyper = {"max_new_tokens": 4} if method == "benchmark" else small
    ctx = job(tmp_path / "job", {"method": method, "data": data, "hyperparameters": hyper}, tiny_checkpoint)
    (perpo if method == "perpo" else benchmark_job).run(ctx)
    warnings = {warning["code"]: warning["detail"] for warning in events_of(ctx, "warning")}
    assert "a.jsonl:1: no JSON" in warnings["samples_rejected"]
    assert f"only {len(HOSTILE) + 1:,} rows" in warnings["fewer_samples"]
    rejected = [json.loads(line) for line in (ctx.run_folder(method) / "rejected.jsonl").read_text().splitlines()]
    assert {"broken_line", "bad_place", "broken_picture", "missing_picture"} <= {one["code"] for one in rejected}
    if method == "perpo":
        assert "too_long" in {one["code"] for one in rejected if one["where"] in ("a.jsonl:4", "a.jsonl:5")}


def test_questions_alone_train_no_pesft(tmp_path: Path, tiny_checkpoint: Path) -> None:
    path = write(tmp_path / "a.jsonl", OWN, {QUESTION: "Where?", ANSWER: "left", "problem_image_1": PNG})
    ctx = job(tmp_path / "job", {"method": "pesft", "data": {"source": "jsonl", "path": str(path)}}, tiny_checkpoint)
    with pytest.raises(JobError, match="2 empty_reasoning"):
        pesft.run(ctx)


JOBS: dict[str, tuple[Callable[[JobContext], dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "pesft": (pesft.run, {"source": "jsonl"}, TRACE),
    "perpo": (perpo.run, {"source": "jsonl"}, TRACE),
    "zero": (zero.run, {"source": "m3cot"}, M3COT),
    "benchmark": (benchmark_job.run, {"source": "omni_bench"}, OMNI),
}


@pytest.mark.parametrize("method", JOBS)
def test_job_without_usable_rows_names_the_first(method: str, tmp_path: Path, tiny_checkpoint: Path) -> None:
    run, data, good = JOBS[method]
    image = "image" if "image" in good else "problem_image_1"
    rows = [{**good, image: value} for value in ("\0", "A" * 300, "x" * 300 + ".png", {"bytes": None}, {"bytes": 5})]
    path = write(tmp_path / "a.jsonl", *rows, "{")
    ctx = job(tmp_path / "job", {"method": method, "data": {**data, "path": str(path)}}, tiny_checkpoint)
    with pytest.raises(JobError, match="6 of 6 samples were left out") as caught:
        run(ctx)
    assert caught.value.code == "no_samples"
    assert "a.jsonl:1" in caught.value.detail
    assert [warning["code"] for warning in events_of(ctx, "warning")] == ["samples_rejected"]
