"""The supported data formats: parsing, rejections and their reasons."""

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

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from training.data.rows import DataError, Intake, Rejection, Row, data_files, open_value, read_rows
from training.data.samples import SampleEncoder, build_token_set, world_samples
from training.data.token_sets import ImageCoder
from training.data.traces import ANSWER, QUESTION, REASONING, SampleStep, TokenIds, TraceSample, read_traces, trace_row
from training.spec.spec import UniTasksData

RED, BLUE = Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (20, 16), (0, 0, 200))


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> LoadedCheckpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def encoder(tiny: LoadedCheckpoint) -> SampleEncoder:
    assert tiny.vq is not None
    return SampleEncoder(ImageCoder(tiny.vq), tiny.vocab)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def official(**changes: Any) -> dict[str, Any]:
    """A row in the authors' format; images as base64 by default."""
    row = {
        QUESTION: "<image_start>[problem_image_1]<image_end> Where is the star?",
        REASONING: "THOUGHT 0: I look.<image_start>[reasoning_image_1]<image_end>\nTHOUGHT 1: It is left.",
        ANSWER: "left",
        "problem_image_1": base64.b64encode(png(RED)).decode(),
        "reasoning_image_1": base64.b64encode(png(BLUE)).decode(),
    }
    return {k: v for k, v in {**row, **changes}.items() if v is not None}


def write_jsonl(path: Path, rows: list[dict[str, Any] | str]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def only(path: Path) -> TraceSample:
    (sample,) = read_traces(path)
    assert isinstance(sample, TraceSample), sample
    return sample


def test_authors_jsonl_becomes_question_steps_answer(tmp_path: Path) -> None:
    sample = only(write_jsonl(tmp_path / "a.jsonl", [official()]))
    assert (sample.where, sample.question, sample.answer) == ("a.jsonl:1", "Where is the star?", "left")
    assert [step.text for step in sample.steps] == ["I look.", "It is left."]
    assert [type(p) for p in sample.images] == [type(sample.steps[0].image)]
    assert sample.steps[1].image is None


def test_plain_marks_are_not_learnt_twice(tmp_path: Path) -> None:
    reasoning = "THOUGHT 1: I look.\nTHOUGHT 2: It is left.\nFinal Answer: left"
    sample = only(write_jsonl(tmp_path / "a.jsonl", [official(**{REASONING: reasoning, ANSWER: "Final Answer: left"})]))
    assert [step.text for step in sample.steps] == ["I look.", "It is left."]
    assert sample.answer == "left"


def test_image_ends_a_step(tmp_path: Path) -> None:
    mark = "<image_start>[reasoning_image_1]<image_end>"
    sample = only(write_jsonl(tmp_path / "a.jsonl", [official(**{REASONING: f"One {mark} two {mark}{mark} three"})]))
    assert [(step.text, step.image is not None) for step in sample.steps] == [
        ("One", True),
        ("two", True),
        ("", True),
        ("three", False),
    ]


def test_token_ids_become_the_same_codes(tmp_path: Path, tiny: LoadedCheckpoint, encoder: SampleEncoder) -> None:
    vocab = tiny.vocab
    ids = vocab.image_ids((5, 6, 7, 8))
    row = official(problem_image_1=ids, reasoning_image_1=ids[1:-1])
    sample = only(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert sample.images == (TokenIds(tuple(ids)),)
    data, intake = build_token_set([sample], encoder, tiny.template, max_len=512)
    assert intake == Intake(1)
    assert data is not None
    learnt = [int(t) for t, m in zip(data.ids, data.loss_mask, strict=True) if m]
    assert learnt[learnt.index(vocab.boi_id) :][: len(ids)] == ids
    assert int(data.ids[1]) == vocab.boi_id  # the question's image comes first and carries no loss
    assert data.loss_mask[1] == 0


@pytest.mark.parametrize(
    ("ids", "reason"),
    [([1, 2, 3], "4 codes, but this one has 3"), ([1, 1, 1, 1], "token 1 is not an image code"), (["a"], "token ids")],
)
def test_invalid_token_ids_reject_their_sample(
    ids: list[Any], reason: str, tmp_path: Path, tiny: LoadedCheckpoint, encoder: SampleEncoder
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [official(), official(reasoning_image_1=ids)])
    _, intake = build_token_set(read_traces(path), encoder, tiny.template, max_len=512)
    (rejection,) = intake.rejected
    assert (rejection.where, rejection.code) == ("a.jsonl:2", "broken_picture")
    assert reason in rejection.detail


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ('{"Question": "Where', "broken_line", "no JSON"),
        ("[1]", "broken_line", "no JSON object"),
        ("[" * 100_000, "broken_line", "no JSON"),
        (json.dumps(official(**{ANSWER: "\ud800"})), "broken_line", "half of a character"),
        (official(reasoning_image_1=None), "missing_picture", "'reasoning_image_1'"),
        (official(problem_image_1=None), "missing_picture", "'problem_image_1'"),
        (official(problem_image_1="gone.png"), "missing_picture", "gone.png"),
        (official(problem_image_1="///?"), "broken_picture", "neither a path nor base64"),
        (official(problem_image_1=base64.b64encode(b"text").decode()), "broken_picture", "not a supported image"),
        (official(problem_image_1=base64.b64encode(png(RED)[:40]).decode()), "broken_picture", ""),
        (official(problem_image_1=7), "broken_picture", "neither token ids nor an image"),
        (official(problem_image_1={"bytes": None, "path": None}), "missing_picture", "neither bytes nor a path"),
        (official(**{QUESTION: "<image_start>[problem_image_1]<image_end>"}), "empty_question", QUESTION),
        (official(**{ANSWER: "  "}), "empty_answer", ANSWER),
        (official(**{REASONING: "THOUGHT 1:"}), "empty_reasoning", REASONING),
        (official(**{QUESTION: 3}), "wrong_type", "int"),
    ],
)
def test_unusable_sample_is_named_with_line(line: Any, code: str, words: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [official(), "", line, official()])
    found = list(read_traces(path))
    (rejection,) = [item for item in found if isinstance(item, Rejection)]
    assert (rejection.where, rejection.code) == ("a.jsonl:3", code)
    assert words in rejection.detail
    assert len(found) == 3  # the samples before and after are kept


def test_image_paths_must_stay_inside_the_data(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(RED))
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / "in.png").write_bytes(png(RED))
    for value in ("../secret.png", str(tmp_path / "secret.png")):
        (rejection,) = read_traces(write_jsonl(inside / "a.jsonl", [official(problem_image_1=value)]))
        assert isinstance(rejection, Rejection)
        assert rejection.code == "missing_picture"
    assert only(write_jsonl(inside / "a.jsonl", [official(problem_image_1="in.png")])).images


def zebra_rows() -> list[dict[str, Any]]:
    """Rows as `datasets` stores Zebra-CoT: images as {bytes, path}, or None if missing."""

    def image(value: Image.Image | None) -> dict[str, Any] | None:
        return None if value is None else {"bytes": png(value), "path": "x.png"}

    full = {
        QUESTION: "Where is it?",
        REASONING: "THOUGHT 0: I look at <image_start>[problem_image_1]<image_end>\n"
        "THOUGHT 1: I zoom in.<image_start>[reasoning_image_1]<image_end>",
        ANSWER: "left",
        "problem_image_1": image(RED),
        "problem_image_2": None,
        "reasoning_image_1": image(BLUE),
    }
    return [full, {**full, "reasoning_image_1": None}]


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_zebra_cot_is_read_from_tables(kind: str, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(zebra_rows())
    if kind == "parquet":
        pq.write_table(table, tmp_path / "train-00000.parquet")
    else:
        new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with new(str(tmp_path / "data-00000.arrow"), table.schema) as writer:
            writer.write_table(table)
        (tmp_path / "dataset_info.json").write_text("{}")
    sample, rejection = read_traces(tmp_path)
    assert isinstance(sample, TraceSample)
    assert len(sample.images) == 1  # the question names none: all images of the row
    assert [(s.text, s.image is not None) for s in sample.steps] == [("I look at", True), ("I zoom in.", True)]
    assert isinstance(rejection, Rejection)
    assert rejection.code == "missing_picture"
    assert rejection.where.endswith(":2")


def test_truncated_table_does_not_affect_other_files(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(zebra_rows()[:1]), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and then nothing")
    write_jsonl(tmp_path / "c.jsonl", [official()])
    kinds = [type(item).__name__ for item in read_traces(tmp_path)]
    assert kinds == ["TraceSample", "Rejection", "TraceSample"]


def test_exported_trace_reads_back(tmp_path: Path) -> None:
    row = trace_row("Where?", [RED], [("I look.", BLUE), ("It is left.", None)], "left", slice="natural", trace_id="t1")
    sample = only(write_jsonl(tmp_path / "t.jsonl", [row]))
    assert (sample.question, sample.answer, sample.slice) == ("Where?", "left", "natural")
    assert [s.text for s in sample.steps] == ["I look.", "It is left."]
    image = sample.steps[0].image
    assert isinstance(image, Image.Image)
    assert image.tobytes() == BLUE.tobytes()
    assert sample.steps[1] == SampleStep("It is left.")


def test_files_are_read_in_name_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        write_jsonl(tmp_path / name, [official()])
    (tmp_path / "README.md").write_text("no data")
    assert [row.where for row in read_rows(tmp_path) if isinstance(row, Row)] == ["a.jsonl:1", "b.jsonl:1"]
    for path in (tmp_path / "README.md", tmp_path / "nothing"):
        with pytest.raises(DataError):
            data_files(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no file"):
        data_files(tmp_path / "empty")


def test_image_of_too_many_pixels_is_rejected() -> None:
    huge = Image.new("1", (9_000, 9_000))
    with pytest.raises(ValueError, match="too many"):
        open_value(png(huge), Path())


def test_long_samples_are_rejected_by_name(tiny: LoadedCheckpoint, encoder: SampleEncoder) -> None:
    samples = list(world_samples(UniTasksData(num_samples=6), seed=0))
    whole, _ = build_token_set(samples, encoder, tiny.template, max_len=512)
    assert whole is not None
    limit = int(sorted(whole.lengths)[2])
    data, intake = build_token_set(samples, encoder, tiny.template, max_len=limit)
    assert data is not None
    assert max(data.lengths) == limit
    assert {r.where for r in intake.rejected} == {
        s.where for s, n in zip(samples, whole.lengths, strict=True) if n > limit
    }
    assert intake.summary().startswith(f"{6 - len(data)} of 6 samples were left out: {6 - len(data)} too_long (first ")
    assert build_token_set(samples, encoder, tiny.template, max_len=3)[0] is None


def test_summary_counts_reasons_with_first_sample(tmp_path: Path) -> None:
    rows = [official(), "{", official(**{ANSWER: ""}), "{"]
    found = list(read_traces(write_jsonl(tmp_path / "a.jsonl", rows)))
    intake = Intake(1, tuple(r for r in found if isinstance(r, Rejection)))
    assert intake.summary().startswith("3 of 4 samples were left out: 2 broken_line (first a.jsonl:2: no JSON")
    assert "1 empty_answer (first a.jsonl:3" in intake.summary()
    assert intake.to_json()["reasons"] == {"broken_line": 2, "empty_answer": 1}
    intake.write(tmp_path / "rejected.jsonl")
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 3


def named(key: str) -> str:
    return f"<image_start>[{key}]<image_end>"


def test_question_images_keep_their_placeholders(tmp_path: Path) -> None:
    two = {
        "problem_image_1": base64.b64encode(png(RED)).decode(),
        "problem_image_2": base64.b64encode(png(BLUE)).decode(),
    }
    a, b = named("problem_image_1"), named("problem_image_2")
    texts = {
        f"Figure A: {a} Figure B: {b}": "Figure A: <image_1> Figure B: <image_2>",
        f"{a}{b} Which is it?": "Which is it?",
        f"Is {b} like {a} or {b}?": "Is <image_1> like <image_2> or <image_1>?",  # numbered in order of appearance
        "Figure A: <image> Figure B: <image>": "Figure A: <image_1> Figure B: <image_2>",
        "Is it <image_2>?": "Is it <image_2>?",
        f"What does <image> mean in {a}?": "What does <image> mean in <image_1>?",  # a row that names keys
    }
    path = write_jsonl(tmp_path / "a.jsonl", [official(**{QUESTION: text, **two}) for text in texts])
    found = [sample for sample in read_traces(path) if isinstance(sample, TraceSample)]
    assert [sample.question for sample in found] == list(texts.values())
    assert [len(sample.images) for sample in found] == [2, 2, 2, 2, 2, 1]
    assert isinstance(found[2].images[0], Image.Image)
    assert found[2].images[0].size == BLUE.size


def test_placeholder_without_image_rejects_its_row(tmp_path: Path) -> None:
    rows = [
        official(**{QUESTION: text})
        for text in ("<image> and <image>", "<image_7>?", f"{named('problem_image_1')} <image_2>")
    ]
    found = list(read_traces(write_jsonl(tmp_path / "a.jsonl", [*rows])))
    assert [(f.where, f.code) for f in found if isinstance(f, Rejection)] == [
        ("a.jsonl:1", "bad_place"),
        ("a.jsonl:2", "bad_place"),
        ("a.jsonl:3", "bad_place"),
    ]


@pytest.mark.parametrize(
    "question", ["Which?", "A: <image_2> B: <image_1>", "Is it <image_2>?", "<image_1> or <image_1>?"]
)
def test_placeholders_round_trip(tmp_path: Path, tiny: LoadedCheckpoint, question: str) -> None:
    row = trace_row(question, [RED, BLUE], [("I look.", RED)], "red")
    sample = only(write_jsonl(tmp_path / "a.jsonl", [row]))
    sizes = {RED.size: (1, 1, 1, 1), BLUE.size: (2, 2, 2, 2)}
    codes = [sizes[p.size] for p in sample.images if isinstance(p, Image.Image)]
    assert tiny.template.prompt_ids(sample.question, codes) == tiny.template.prompt_ids(question, list(sizes.values()))


def test_training_prompt_equals_serving_prompt(tmp_path: Path, tiny: LoadedCheckpoint, encoder: SampleEncoder) -> None:
    """PeSFT's training sequence starts with the prompt that serving builds."""
    row = trace_row("Figure A: <image_1> Figure B: <image_2>", [RED, BLUE], [("I look.", RED)], "red")
    (encoded,) = encoder.encode([only(write_jsonl(tmp_path / "a.jsonl", [row]))])
    assert not isinstance(encoded, Rejection)
    prompt = tiny.template.prompt_ids("Figure A: <image_1> Figure B: <image_2>", encoded.images)
    rendered = encoded.render(tiny.template)
    assert rendered.ids[: len(prompt)] == prompt
    assert sum(rendered.loss_mask[: len(prompt)]) == 0
