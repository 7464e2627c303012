"""PeSFT as a job: results, stop and resume, and every failure."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import training.pesft.job
import training.pesft.loop
from model.checkpoint.checkpoint import load_checkpoint, validate_checkpoint
from model.checkpoint.manifest import ImageCount, Manifest
from model.text.template import Rendered
from tests.tiny import make_tiny_checkpoint
from tests.training.job_helpers import events, losses, make_context, masters
from tests.training.job_helpers import pesft_spec as spec
from training.data.token_sets import ImageCoder, TokenSet
from training.data.traces import ANSWER, QUESTION, REASONING
from training.jobs.checkpoints import stage_checkpoints
from training.jobs.context import JobError, JobStopped
from training.jobs.log import JobLog
from training.jobs.loop import StopFlag
from training.pesft.job import question_images, run
from training.spec.spec import PRESETS


def rows(count: int, codes: list[int]) -> list[dict[str, Any]]:
    text = "THOUGHT 1: I look.<image_start>[reasoning_image_1]<image_end>"
    row = {QUESTION: "Where?", REASONING: text, ANSWER: "left", "reasoning_image_1": codes}
    return [{**row, ANSWER: f"left {i}"} for i in range(count)]


def write_jsonl(path: Path, lines: list[Any]) -> dict[str, Any]:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return {"source": "jsonl", "path": str(path)}


def test_job_writes_servable_checkpoints_with_state(pesft_job: Path, tiny_checkpoint: Path) -> None:
    names = [e["name"] for e in events(pesft_job, "checkpoint")]
    assert names == ["job-step-2", "job-step-4", "job-step-6"]
    folder = pesft_job / "checkpoints" / "job-step-6"
    manifest = validate_checkpoint(folder)
    assert (manifest.name, manifest.base, manifest.template) == ("job-step-6", tiny_checkpoint.name, "plain")
    assert (manifest.images.min, manifest.images.max) == (1, 2)  # every question of the world has its image
    assert Manifest.read(tiny_checkpoint).verifier
    assert not manifest.verifier, "training on traces forgets to judge"
    assert manifest.lineage["step"] == 6
    assert manifest.lineage["spec"]["hyperparameters"]["lr"] == 1e-2
    loaded = load_checkpoint(folder)
    assert loaded.can_draw
    for name, master in masters(pesft_job, 6).items():
        assert master.dtype == torch.float32
        assert torch.equal(loaded.transformer.state_dict()[name], master.to(torch.bfloat16).float()), name
    base_vq = load_checkpoint(tiny_checkpoint).vq
    assert base_vq is not None
    assert loaded.vq is not None
    assert torch.equal(loaded.vq.codebook, base_vq.codebook)
    w = load_file(folder / "train" / "perception.safetensors")["perception.weight"]
    assert w.shape == (8, 64)
    assert w.abs().max() > 0  # it started at zero and was trained
    assert json.loads((folder / "train" / "train.json").read_text())["step"] == 6


def test_job_logs_progress_metrics_and_result(pesft_job: Path) -> None:
    stages = [(e["stage"], e["step"], e["total"]) for e in events(pesft_job, "progress")]
    assert stages[0] == ("data", 12, 12)
    assert stages[-1] == ("pesft", 6, 6)
    values = events(pesft_job, "metrics")[-1]["values"]
    assert {"loss/ce", "loss/text", "loss/image", "loss/perception"} < set(values)
    assert {"optim/lr", "optim/grad_norm", "speed/tokens_per_s"} < set(values)
    assert losses(pesft_job)[6] < losses(pesft_job)[1]
    result = json.loads((pesft_job / "result.json").read_text())
    assert (result["checkpoint"], result["steps"], result["data"]["kept"]) == ("job-step-6", 6, 12)


def test_killed_job_resumes_bit_identically(
    tmp_path: Path, tiny_checkpoint: Path, pesft_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = JobLog.metrics

    def die(log: JobLog, stage: str, step: int, values: Any) -> None:
        tell(log, stage, step, values)
        if step == 3:
            raise SystemExit("as if by SIGKILL")

    with monkeypatch.context() as patch:
        patch.setattr(JobLog, "metrics", die)
        with pytest.raises(SystemExit):
            run(make_context(tmp_path, spec(), tiny_checkpoint))
    run(make_context(tmp_path, spec(), tiny_checkpoint, resume=True))
    assert [e["step"] for e in events(tmp_path, "metrics")] == [1, 2, 3, 3, 4, 5, 6]
    assert losses(tmp_path) == losses(pesft_job)
    final, expected = masters(tmp_path, 6), masters(pesft_job, 6)
    for name, value in expected.items():
        assert torch.equal(final[name], value), name


def test_stopped_job_resumes_bit_identically(
    tmp_path: Path, tiny_checkpoint: Path, pesft_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = JobLog.metrics
    stop = StopFlag()

    def stop_after_three(log: JobLog, stage: str, step: int, values: Any) -> None:
        tell(log, stage, step, values)
        if step == 3:
            stop.request()

    with monkeypatch.context() as patch:
        patch.setattr(JobLog, "metrics", stop_after_three)
        with pytest.raises(JobStopped):
            run(make_context(tmp_path, spec(), tiny_checkpoint, stop=stop))
    assert [e["name"] for e in events(tmp_path, "checkpoint")] == ["job-step-2", "job-step-3"]
    validate_checkpoint(tmp_path / "checkpoints" / "job-step-3")
    run(make_context(tmp_path, spec(), tiny_checkpoint, resume=True))
    assert losses(tmp_path) == losses(pesft_job)
    final, expected = masters(tmp_path, 6), masters(pesft_job, 6)
    assert all(torch.equal(final[name], value) for name, value in expected.items())


def test_lost_last_checkpoint_is_rewritten(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the state of the last step and its checkpoint."""
    job = spec(steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(training.pesft.job, "save_training_checkpoint", _die)
        with pytest.raises(SystemExit):
            run(make_context(tmp_path, job, tiny_checkpoint))
    assert stage_checkpoints(make_context(tmp_path, job, tiny_checkpoint)) == []
    assert run(make_context(tmp_path, job, tiny_checkpoint, resume=True))["checkpoint"] == "job-step-2"


def _die(*_: Any, **__: Any) -> None:
    raise SystemExit


def test_looks_do_not_change_training(tmp_path: Path, tiny_checkpoint: Path, pesft_job: Path) -> None:
    run(make_context(tmp_path, spec(sample_every=3, show_samples=2), tiny_checkpoint))
    samples = events(tmp_path, "sample")
    assert [(s["step"], s["prompt"]) for s in samples] == [(0, 0), (0, 1), (3, 0), (3, 1), (6, 0), (6, 1)]
    assert all((tmp_path / s["question_image"]).exists() for s in samples)
    assert {tuple(s["rewards"]) for s in samples} == {("total", "accuracy", "format", "perception")}
    assert losses(tmp_path) == losses(pesft_job)


def test_only_newest_states_are_kept(tmp_path: Path, tiny_checkpoint: Path) -> None:
    run(make_context(tmp_path, spec(keep_states=1), tiny_checkpoint))
    with_state = [p.name for p in (tmp_path / "checkpoints").iterdir() if (p / "train").exists()]
    assert with_state == ["job-step-6"]
    for step in (2, 4, 6):
        validate_checkpoint(tmp_path / "checkpoints" / f"job-step-{step}")


def test_image_count_follows_the_data() -> None:
    boi, answered = 9, [0, 0, 0, 1, 1]
    rows = [Rendered([1, boi, boi, 2, boi], answered), Rendered([1, boi, 2, boi, 3], answered)]
    assert question_images(TokenSet.build(rows, 8), boi, ImageCount(0, 1)) == ImageCount(1, 2)
    text_only = TokenSet.build([*rows, Rendered([1, 2, boi], [0, 0, 1])], 8)
    assert question_images(text_only, boi, ImageCount(1, 4)) == ImageCount(0, 4)


def test_epochs_become_steps(tmp_path: Path, tiny_checkpoint: Path) -> None:
    codes = list(load_checkpoint(tiny_checkpoint).vocab.code_ids[:4])
    data = write_jsonl(tmp_path / "a.jsonl", rows(10, codes))
    job = spec(data, steps=None, epochs=2.0, batch_samples=4)
    assert run(make_context(tmp_path / "job", job, tiny_checkpoint))["steps"] == 4  # 2 epochs of 10 // 4 batches


def test_upstream_preset_trains_on_authors_format(tmp_path: Path, tiny_checkpoint: Path) -> None:
    codes = list(load_checkpoint(tiny_checkpoint).vocab.code_ids[:4])
    preset = PRESETS["upstream"].spec
    hyper = {**preset["hyperparameters"], "lr": 1e-2, "log_every": 1, "sample_every": 0}
    job = {**preset, "base_checkpoint": "tiny", "data": write_jsonl(tmp_path / "a.jsonl", rows(16, codes))}
    result = run(make_context(tmp_path / "job", {**job, "hyperparameters": hyper}, tiny_checkpoint))
    assert result["steps"] == 2  # one epoch of 16 samples, 8 per batch
    w = load_file(Path(result["folder"]) / "train" / "perception.safetensors")
    assert set(w) == {"perception.weight", "perception.bias"}
    start = training.pesft.loop.make_projection(
        training.pesft.loop.SFTSpec(steps=1, lr=1.0, perception_projection="frozen"), 64, 8
    )
    assert torch.equal(w["perception.weight"], start.weight)  # random, and never trained


def test_rejected_samples_are_counted_and_named(tmp_path: Path, tiny_checkpoint: Path) -> None:
    codes = list(load_checkpoint(tiny_checkpoint).vocab.code_ids[:4])
    good = rows(6, codes)
    missing = {k: v for k, v in good[0].items() if k != "reasoning_image_1"}
    long = {**good[0], QUESTION: "very long " * 400}
    data = write_jsonl(tmp_path / "a.jsonl", [*good, "{broken", missing, long])
    result = run(make_context(tmp_path / "job", spec(data, steps=1), tiny_checkpoint))
    assert (result["data"]["kept"], result["data"]["rejected"]) == (6, 3)
    (warning,) = events(tmp_path / "job", "warning")
    assert warning["code"] == "samples_rejected"
    for words in ("3 of 9 samples", "1 broken_line (first a.jsonl:7", "a.jsonl:8: the text names", "a.jsonl:9"):
        assert words in warning["detail"]
    (report,) = events(tmp_path / "job", "report")
    assert [r["where"] for r in report["first"]] == ["a.jsonl:7", "a.jsonl:8", "a.jsonl:9"]
    assert len((tmp_path / "job" / "runs" / "pesft" / "rejected.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        ([], "no_samples", "nothing is left"),
        (["{"], "no_samples", "a.jsonl:1"),
        (None, "bad_data", "does not exist"),
    ],
)
def test_empty_set_ends_job_with_reason(
    lines: list[Any] | None, code: str, words: str, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    data = {"source": "jsonl", "path": str(tmp_path / "gone")}
    if lines is not None:
        data = write_jsonl(tmp_path / "a.jsonl", lines)
    with pytest.raises(JobError, match=words) as caught:
        run(make_context(tmp_path / "job", spec(data), tiny_checkpoint))
    assert caught.value.code == code
    assert not (tmp_path / "job" / "checkpoints").exists()


def test_unexported_traces_are_rejected(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(JobError, match="have not been exported"):
        run(make_context(tmp_path, spec({"source": "traces", "trace_ids": ["t1"]}), tiny_checkpoint))


def test_base_without_decoder_may_learn_text(tmp_path: Path) -> None:
    base = make_tiny_checkpoint(tmp_path / "blind", decoder=False)
    with pytest.raises(JobError, match="no VQ decoder") as caught:
        run(make_context(tmp_path / "a", spec(), base))
    assert caught.value.code == "base_cannot_draw"
    result = run(make_context(tmp_path / "b", spec(variant="text", steps=1), base))
    assert not validate_checkpoint(Path(result["folder"])).capabilities.images_in_answer


def test_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="not_found") as caught:
        run(make_context(tmp_path, spec(), tmp_path / "gone"))
    assert caught.value.code == "bad_checkpoint"


def test_job_can_change_the_template(tmp_path: Path, tiny_checkpoint: Path) -> None:
    result = run(make_context(tmp_path, spec(steps=1, template="tagged"), tiny_checkpoint))
    assert load_checkpoint(result["folder"]).template.name == "tagged"


def test_cached_data_is_not_read_again(tmp_path: Path, tiny_checkpoint: Path) -> None:
    codes = list(load_checkpoint(tiny_checkpoint).vocab.code_ids[:4])
    job = spec(write_jsonl(tmp_path / "a.jsonl", rows(8, codes)), steps=2)
    run(make_context(tmp_path / "job", job, tiny_checkpoint))
    os.unlink(tmp_path / "a.jsonl")  # a data file may be deleted before a job is resumed
    run(make_context(tmp_path / "job", job, tiny_checkpoint, resume=True))
    with pytest.raises(JobError, match="does not exist"):
        run(make_context(tmp_path / "job", job, tiny_checkpoint))


def test_second_job_encodes_no_image_again(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of its data nor of the questions that it is looked at with; it trains as the first does."""
    seen: list[int] = []
    encode = ImageCoder._encode

    def counted(coder: ImageCoder, images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        return encode(coder, images)

    monkeypatch.setattr(ImageCoder, "_encode", counted)
    run(make_context(tmp_path / "jobs" / "one", spec(steps=2), tiny_checkpoint))
    assert sum(seen) >= 12
    seen.clear()
    run(make_context(tmp_path / "jobs" / "two", spec(steps=2), tiny_checkpoint))
    assert not seen
    assert losses(tmp_path / "jobs" / "two") == losses(tmp_path / "jobs" / "one")


def test_resume_rejects_other_settings(tmp_path: Path, tiny_checkpoint: Path) -> None:
    run(make_context(tmp_path, spec(steps=2), tiny_checkpoint))
    with pytest.raises(JobError, match="other settings"):
        run(make_context(tmp_path, spec(steps=2, lr=1e-3), tiny_checkpoint, resume=True))


def test_drills_join_the_traces(tmp_path: Path, tiny_checkpoint: Path) -> None:
    job = spec(steps=2, drills=0.25)
    run(make_context(tmp_path / "job", job, tiny_checkpoint))
    folder = tmp_path / "job" / "runs" / "pesft"
    traces, drills = (TokenSet.load(folder / name) for name in ("data.npz", "drills.npz"))
    assert len(drills) == len(traces) / 3
    whole = traces.joined(drills)
    assert whole.ids.tolist() == [*traces.ids, *drills.ids]
    assert whole.lengths.tolist() == [*traces.lengths, *drills.lengths]
    images = validate_checkpoint(tmp_path / "job" / "checkpoints" / "job-step-2").images
    assert (images.min, images.max) == (1, 2), "a drill is not a question"
    with pytest.raises(JobError, match="other settings"):
        run(make_context(tmp_path / "job", spec(steps=2), tiny_checkpoint, resume=True))


def test_drills_need_images(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="variant interleaved"):
        make_context(tmp_path, spec(variant="text", drills=0.25), tiny_checkpoint)
