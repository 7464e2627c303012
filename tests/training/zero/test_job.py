"""The Zero job: its traces, report, stop and resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint.checkpoint import load_checkpoint
from tests.tiny import make_tiny_checkpoint
from tests.training.contexts import StopAfter, events_of, job
from tests.training.zero.test_visualiser import DATA, SETTINGS
from training.data.samples import EncodedSample, SampleEncoder
from training.data.token_sets import ImageCoder, id_to_code
from training.data.traces import TraceSample, read_traces
from training.jobs.context import JobError, JobStopped
from training.pesft import job as pesft
from training.zero import job as zero
from training.zero.visualiser import (
    DrawnChain,
)


def zero_job(folder: Path, base: Path, **more: Any) -> Any:
    hyper = {**SETTINGS, "pesft": None, **more.pop("hyperparameters", {})}
    return job(folder, {"method": "zero", "data": DATA, "hyperparameters": hyper}, base, **more)


def test_pesft_reads_traces_with_exact_codes(tmp_path: Path, base: Path) -> None:
    ctx = zero_job(tmp_path / "job", base)
    result = zero.run(ctx)
    drawn = [
        DrawnChain.from_json(json.loads(line))
        for line in (ctx.folder / "runs" / "zero" / "drawn.jsonl").read_text().splitlines()
    ]
    whole = [one for one in drawn if one.rejected is None]
    samples = [s for s in read_traces(result["traces"]) if isinstance(s, TraceSample)]
    assert len(samples) == len(whole) == result["accepted"] > 0
    loaded = load_checkpoint(base, template="tagged")
    assert loaded.vq is not None
    encoded = SampleEncoder(ImageCoder(loaded.vq), loaded.vocab).encode(samples)
    for one, sample in zip(whole, encoded, strict=True):
        assert isinstance(sample, EncodedSample)
        assert (sample.question, sample.answer, sample.images) == (one.question, one.answer, (one.question_codes,))
        assert [(text, codes) for text, _, codes in sample.steps] == [(s.text, s.image) for s in one.steps]
        ids = sample.render(loaded.template).ids
        assert ids.count(loaded.vocab.thought_open_id) == 2  # the template of Zero: mentioned in the prompt, then used
        assert (id_to_code(loaded.vocab)[torch.tensor(ids)] >= 0).sum() == 16 * (1 + len(one.steps))


def test_job_logs_report_sheet_and_samples(tmp_path: Path, base: Path) -> None:
    ctx = zero_job(tmp_path / "job", base)
    zero.run(ctx)
    (report,) = [r for r in events_of(ctx, "report") if r["kind"] == "bootstrapping"]
    assert (ctx.folder / report["contact_sheet"]).stat().st_size > 0
    assert report["chains"] == 6
    assert 0 < report["checkers"]["judged"] <= report["pictures_drawn"]  # merged steps have no right image
    samples = events_of(ctx, "sample")
    assert samples
    assert all((ctx.folder / step["image"]).exists() for sample in samples for step in sample["steps"])
    assert [p["step"] for p in events_of(ctx, "progress")] == [0, 4, 6]


def test_resumed_job_gives_the_same_traces(tmp_path: Path, base: Path) -> None:
    whole = zero.run(zero_job(tmp_path / "whole", base))
    with pytest.raises(JobStopped):
        zero.run(zero_job(tmp_path / "parts", base, stop=StopAfter(1)))
    drawn = tmp_path / "parts" / "runs" / "zero" / "drawn.jsonl"
    assert len(drawn.read_text().splitlines()) == 4
    with drawn.open("a") as file:
        file.write('{"chain_id": "torn')  # as left by a killed worker
    ctx = zero_job(tmp_path / "parts", base, resume=True)
    resumed = zero.run(ctx)
    assert Path(resumed["traces"]).read_text() == Path(whole["traces"]).read_text()
    assert {**resumed["report"], "seconds": 0} == {**whole["report"], "seconds": 0}
    assert zero.run(zero_job(tmp_path / "parts", base, resume=True)) == resumed  # and is not drawn twice


def test_too_few_traces_fail_the_job(tmp_path: Path, base: Path) -> None:
    ctx = zero_job(tmp_path / "job", base, hyperparameters={"copied_share": 0.0})
    with pytest.raises(JobError, match="6 no_picture") as caught:
        zero.run(ctx)
    assert caught.value.code == "too_few_accepted"
    assert "copied_pictures" in [w["code"] for w in events_of(ctx, "warning")]


def test_base_without_decoder_is_rejected(tmp_path: Path) -> None:
    blind = make_tiny_checkpoint(tmp_path / "blind", decoder=False)
    with pytest.raises(JobError, match="decoder") as caught:
        zero.run(zero_job(tmp_path / "job", blind))
    assert caught.value.code == "base_cannot_draw"


def test_missing_or_empty_data_is_named(tmp_path: Path, base: Path) -> None:
    spec = {"method": "zero", "data": {"source": "m3cot", "path": str(tmp_path / "none")}, "hyperparameters": SETTINGS}
    with pytest.raises(JobError, match="does not exist"):
        zero.run(job(tmp_path / "a", spec, base))
    (tmp_path / "m.jsonl").write_text('{"question": "q"}\nno json\n')
    spec["data"] = {"source": "m3cot", "path": str(tmp_path / "m.jsonl")}
    with pytest.raises(JobError, match=r"first m\.jsonl:1") as caught:
        zero.run(job(tmp_path / "b", spec, base))
    assert caught.value.code == "no_samples"


def test_pesft_follows_with_zeros_template(tmp_path: Path, base: Path) -> None:
    hyper = {"pesft": {"steps": 2, "batch_samples": 2, "save_every": 2, "sample_every": 0}}
    ctx = zero_job(tmp_path / "job", base, hyperparameters=hyper)
    result = zero.run(ctx)
    made = load_checkpoint(result["folder"])
    assert made.template.name == "tagged"
    assert result["checkpoint"] == "made-pesft-step-2"
    assert result["zero"]["accepted"] == result["data"]["kept"]
    assert made.manifest.description == pesft.DESCRIPTION
