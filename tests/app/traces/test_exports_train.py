"""Exported traces as training data, on the real engine: edited branches included, and PeSFT trains on the file."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.client.types import Trace
from tests.app.traces.real import Studio
from tests.fakes import png
from tests.patience import PATIENCE_S
from training.data.traces import TraceSample, read_traces

RED = png((220, 20, 20), (200, 120))


def exported(studio: Studio, folder: Path, trace_ids: list[str]) -> list[TraceSample]:
    """The traces as PeSFT reads them from the exported file."""
    file = folder / "traces.jsonl"
    with studio.client.export(trace_ids, format="jsonl") as export:
        assert export.skipped == 0
        file.write_bytes(b"".join(export.chunks))
    samples = list(read_traces(file))
    assert all(isinstance(sample, TraceSample) for sample in samples)
    return samples  # type: ignore[return-value]


def assert_reads_back(studio: Studio, sample: TraceSample, trace: Trace) -> None:
    """Assert that question, texts, images and answer are the trace's."""
    assert (sample.question, sample.answer) == (trace["question"], trace["answer"])
    assert [step.text for step in sample.steps] == [step["text"].strip() for step in trace["steps"]]
    shown = [*trace["images"], *(step.get("image") for step in trace["steps"])]
    for image, stored in zip([*sample.images, *(step.image for step in sample.steps)], shown, strict=True):
        assert (image is None) == (stored is None)
        if stored is not None:
            assert isinstance(image, Image.Image)
            assert image.tobytes() == pixels(studio, stored["image_id"])


def pixels(studio: Studio, image_id: str) -> bytes:
    return Image.open(io.BytesIO(studio.client.image(image_id))).convert("RGB").tobytes()


def test_corrected_branch_exports_the_image_that_the_model_saw(studio: Studio, tmp_path: Path) -> None:
    trace = studio.asked(3)
    given = studio.client.upload_image(RED)["image_id"]
    edits: list[Any] = [{"step": 1, "text": "I look again.", "image": {"image_id": given}}]
    branch = studio.branched(trace["id"], 1, edits=edits)
    assert branch["steps"][0]["image"] is not None
    assert branch["steps"][0]["image"]["image_id"] not in (given, trace["steps"][0]["image"]["image_id"])
    samples = exported(studio, tmp_path, [branch["id"], trace["id"]])
    assert_reads_back(studio, samples[0], branch)
    assert_reads_back(studio, samples[1], trace)
    assert samples[0].steps[0].text == "I look again."
    studio.client.delete(trace["id"])
    assert_reads_back(studio, exported(studio, tmp_path, [branch["id"]])[0], branch)


def test_page_of_a_branch_marks_edited_and_kept_steps(studio: Studio) -> None:
    trace = studio.asked(3)
    branch = studio.branched(trace["id"], 2, edits=[{"step": 2, "image": {"use": "blank"}}])
    with studio.client.export(branch["id"], format="html") as export:
        page = b"".join(export.chunks).decode()
    first, second, *_ = page.split("<h2>Step ")[1:]
    assert 'class="mark">kept<' in first
    assert "edited<" not in first
    assert 'class="mark edited">edited<' in second
    assert f"{trace['id']}, after step 2" in page


@pytest.mark.slow
def test_exported_file_trains_as_it_is(studio: Studio, tiny_checkpoint: Path) -> None:
    shutil.copytree(tiny_checkpoint, studio.home / "checkpoints" / "tiny")
    ids = [studio.asked(seed, slice_)["id"] for seed, slice_ in ((1, "natural"), (2, "operational"))]
    ids.append(studio.branched(ids[0], 1, edits=[{"step": 1, "image": {"use": "reference"}}])["id"])
    for trace_id in ids:
        studio.client.update_trace(trace_id, tags=["train on it"])
    with studio.client.export(format="jsonl", filter={"tag": "train on it"}) as export:
        uploaded = studio.client.upload_dataset(b"".join(export.chunks))
    assert uploaded["rows"] == len(ids)
    small = {"steps": 2, "batch_tokens": 256, "log_every": 1, "show_samples": 1, "sample_every": 100}
    spec = {"method": "pesft", "base_checkpoint": "tiny", "hyperparameters": small, "seed": 1}
    losses = []
    for data in ({"source": "jsonl", "path": uploaded["path"]}, {"source": "traces", "tag": "train on it"}):
        job = studio.client.create_job({**spec, "data": data})
        events = list(studio.client.job_events(job["id"], give_up_s=PATIENCE_S))
        assert [event.data["status"] for event in events if event.type == "job.status"][-1] == "succeeded"
        assert [event.data for event in events if event.type == "warning"] == []
        reports = [event.data for event in events if event.type == "report" and event.data["kind"] == "data"]
        assert [report["rejected"] for report in reports] == [0], reports
        losses.append([event.data["values"]["loss/ce"] for event in events if event.type == "metrics"])
        if data["source"] == "traces":
            assert studio.client.job(job["id"])["spec"]["data"]["trace_ids"] == ids[::-1]
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]  # the same rows in the same order
