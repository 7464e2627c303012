"""The Zero job: text-only chains of thought -> images drawn by the base -> traces -> PeSFT (method, section 4).

Chains are drawn in chunks by :class:`training.zero.visualiser.Visualiser`, and each chunk is kept in the run's folder:
a resumed job continues with the next one and produces the same traces. Traces that pass the guards are written as a
PeSFT data set in the authors' jsonl format; the report counts drawn and rejected images, measures blankness and
diversity, and has a contact sheet. Selection never uses the world's ground truth.

Launch: ``python -m training.jobs.worker JOB_DIR``, as the server does for ``POST /v1/jobs {"method": "zero", ...}``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.checkpoint import CheckpointError, LoadedCheckpoint, load_checkpoint
from model.checkpoint.manifest import Perception
from model.images.codes import decode_codes
from model.precision import serving_dtype
from model.text.template import Template
from model.text.vocab import Vocabulary
from training.data.chains import TextChain, assigned_ids
from training.data.rows import DataError, Intake, Rejection
from training.data.traces import trace_row
from training.jobs.context import JobContext, JobError
from training.pesft import job as pesft
from training.spec.spec import JsonlData, PeSFTSpec, ZeroHyperparameters, ZeroSpec
from training.zero.chain_sources import read_chains
from training.zero.report import bootstrap_report, contact_sheet
from training.zero.visualiser import DrawnChain, Visualiser, leave_out_the_unsure

STAGE = "zero"
DRAWN = "drawn.jsonl"
SHOWN = 12  # traces logged as samples
BLANK_WARNING = 0.2  # share of blank candidates
COPIED_WARNING = 0.2


def run(ctx: JobContext) -> dict[str, Any]:
    """Bootstrap, then run PeSFT on the drawn traces unless disabled; return the object for ``result.json``.

    Raises:
        JobError: the base cannot draw, the chains cannot be used, or too few traces were accepted.
        JobStopped: stopped; finished drawings are kept.
    """
    spec = ctx.spec
    assert isinstance(spec, ZeroSpec)
    result = bootstrap(ctx)
    settings = spec.hyperparameters.pesft
    if settings is None:
        return result
    hyper = settings.model_copy(update={"template": settings.template or spec.hyperparameters.template})
    stage = PeSFTSpec(
        **{name: getattr(spec, name) for name in ("base_checkpoint", "seed", "gpu", "output_name", "threads")},
        data=JsonlData(path=result["traces"]),
        hyperparameters=hyper,
    )
    trained = pesft.run(ctx.for_stage("pesft", stage, ctx.base_folder))
    return {**trained, "zero": result}


def bootstrap(ctx: JobContext) -> dict[str, Any]:
    """Draw the images, write traces, report and contact sheet; reuse the result of an earlier session.

    Raises:
        JobError: the base cannot draw, the chains cannot be used, or too few traces were accepted.
        JobStopped: stopped; finished drawings are kept.
    """
    spec = ctx.spec
    assert isinstance(spec, ZeroSpec)
    settings = spec.hyperparameters
    folder = ctx.run_folder(STAGE)
    finished = folder / "result.json"
    if ctx.resume and finished.exists():
        known: dict[str, Any] = ctx.located(json.loads(finished.read_text("utf-8")))
        return known
    base, output = _load(ctx, settings)
    started = time.monotonic()
    try:
        drawn, intake = _draw(ctx, Visualiser(base, settings, seed=spec.seed, output=output), spec, folder)
    except DataError as error:
        raise JobError("bad_data", str(error)) from error
    result = _finish(ctx, base, drawn, intake, folder)
    result["seconds"] = round(time.monotonic() - started, 1)
    _accept(ctx, result, settings)
    text = json.dumps(ctx.record(result))
    ctx.disk.replace(finished, lambda path: path.write_text(text, "utf-8"))
    return result


def _load(ctx: JobContext, settings: ZeroHyperparameters) -> tuple[LoadedCheckpoint, Template]:
    """The base as it would be served, and the template of the traces."""
    name = ctx.spec.base_checkpoint
    try:
        base = load_checkpoint(ctx.base_folder, device=ctx.device, dtype=serving_dtype(torch.device(ctx.device)))
        output = Template(settings.template, base.vocab, base.tokenizer)
    except CheckpointError as error:
        raise JobError("bad_checkpoint", f"{error.code}: {error.detail}") from error
    except ValueError as error:
        raise JobError("bad_template", f"{name}: {error}") from error
    if not base.can_draw:
        raise JobError("base_cannot_draw", f"{name} has no VQ decoder: it cannot draw the images of a chain")
    if settings.score == "verifier" and not base.manifest.verifier:
        raise JobError("no_verifier", f"{name} is no verifier: it cannot judge what it draws")
    return base, output


def _draw(ctx: JobContext, visualiser: Visualiser, spec: ZeroSpec, folder: Path) -> tuple[list[DrawnChain], Intake]:
    """Draw every chain, chunk by chunk; chunks of an earlier session are read back."""
    path, size = folder / DRAWN, spec.hyperparameters.batch_size
    drawn = _read_back(path, size) if ctx.resume else []
    ctx.disk.replace(path, lambda temporary: temporary.write_text(_lines(drawn), "utf-8"))
    if drawn:
        ctx.log.log(f"{len(drawn)} chains were already drawn")
    rejected: list[Rejection] = []
    chains = assigned_ids(
        _kept(read_chains(spec.data, spec.seed, spec.hyperparameters, visualiser.vq.config.resolution), rejected)
    )
    total, began, fresh = spec.data.num_samples or 0, ctx.clock(), 0
    for _ in islice(chains, len(drawn)):
        pass
    ctx.log.progress(STAGE, len(drawn), max(total, len(drawn)))
    while chunk := list(islice(chains, size)):
        ctx.check_stop()
        new = visualiser.draw(chunk)
        ctx.disk.append(path, _lines(new))
        drawn += new
        fresh += len(new)
        left = max(0, total - len(drawn))
        ctx.log.progress(
            STAGE, len(drawn), max(total, len(drawn)), left * (ctx.clock() - began) / fresh if total else None
        )
        ctx.log.metrics(STAGE, len(drawn), _chunk_metrics(new))
        _show(ctx, visualiser.loaded, chunk, new, first=len(drawn) - len(new))
    return drawn, Intake(len(drawn), tuple(rejected))


def _kept(items: Iterable[TextChain | Rejection], rejected: list[Rejection]) -> Iterator[TextChain]:
    for item in items:
        if isinstance(item, Rejection):
            rejected.append(item)
        else:
            yield item


def _finish(
    ctx: JobContext, base: LoadedCheckpoint, drawn: Sequence[DrawnChain], intake: Intake, folder: Path
) -> dict[str, Any]:
    """Write traces, report and contact sheet."""
    assert base.vq is not None
    if intake.rejected:
        ctx.disk.write(lambda: intake.write(folder / "rejected.jsonl"))
        ctx.log.warning("samples_rejected", intake.summary())
    spec = ctx.spec
    assert isinstance(spec, ZeroSpec)
    if short := intake.shortfall(spec.data.num_samples):
        ctx.log.warning("fewer_samples", short)
    if not drawn:
        raise JobError("no_samples", f"there is no chain to draw: {intake.summary()}")
    leave_out_the_unsure(drawn, spec.hyperparameters.keep_share)
    traces = ctx.folder / "zero" / "traces.jsonl"
    ctx.disk.write(lambda: traces.parent.mkdir(parents=True, exist_ok=True))
    text = "".join(
        json.dumps(trace_row_of(one, base.vocab), ensure_ascii=False) + "\n" for one in drawn if not one.rejected
    )
    ctx.disk.replace(traces, lambda path: path.write_text(text, "utf-8"))
    report = bootstrap_report(drawn, base.manifest.perception or Perception())
    sheet = ctx.log.save_image(contact_sheet(base.vq, drawn), "zero-contact-sheet")
    report |= {"contact_sheet": sheet, "traces": str(traces.relative_to(ctx.folder)), "data": intake.to_json()}
    ctx.log.report("bootstrapping", report)
    for share, limit, code in (
        (report["blank_share"], BLANK_WARNING, "blank_pictures"),
        (report["copied_share"], COPIED_WARNING, "copied_pictures"),
    ):
        if share is not None and share > limit:
            ctx.log.warning(code, f"{share:.0%} of the drawn pictures were rejected as such: look at the contact sheet")
    return {"traces": str(traces), "accepted": report["accepted"], "report": report}


def _accept(ctx: JobContext, result: dict[str, Any], settings: ZeroHyperparameters) -> None:
    report = result["report"]
    accepted, total = report["accepted"], report["chains"]
    if accepted == total:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in report["rejected"].items())
    detail = f"{total - accepted} of {total} chains are no traces ({reasons}): look at the contact sheet"
    whole = accepted + report["rejected"].get("unsure", 0)  # excluded by choice
    if not accepted or whole < settings.min_accepted * total:
        raise JobError("too_few_accepted", detail)
    ctx.log.warning("samples_rejected", detail)


def trace_row_of(one: DrawnChain, vocab: Vocabulary) -> dict[str, Any]:
    """A drawn chain as a row of the authors' format, its images as token ids with begin- and end-image."""
    images = [] if one.question_codes is None else [vocab.image_ids(one.question_codes)]
    steps = [(step.text, None if step.image is None else vocab.image_ids(step.image)) for step in one.steps]
    return trace_row(one.question, images, steps, one.answer, id=one.chain_id, slice=one.slice)


def _chunk_metrics(new: Sequence[DrawnChain]) -> dict[str, float]:
    candidates = [c for one in new for step in one.steps for c in step.candidates]
    kept = [step.candidates[step.kept] for one in new for step in one.steps if step.kept is not None]
    n = max(1, len(candidates))
    return {
        "zero/accepted_share": sum(one.rejected is None for one in new) / max(1, len(new)),
        "pictures/blank_share": sum(c.flat for c in candidates) / n,
        "pictures/copied_share": sum(c.copied for c in candidates) / n,
        "reward/perception": sum(c.score for c in kept) / max(1, len(kept)),
    }


def _show(
    ctx: JobContext, base: LoadedCheckpoint, chunk: Sequence[TextChain], new: Sequence[DrawnChain], *, first: int
) -> None:
    """Log one trace of every chunk, and the first few complete ones of the first chunk."""
    assert base.vq is not None
    whole = [i for i, one in enumerate(new) if one.rejected is None]
    shown = whole[:4] if first == 0 else whole[:1] if first < SHOWN * len(new) else []
    for i in shown:
        one = new[i]
        images = iter(decode_codes(base.vq, [step.image for step in one.steps if step.image is not None]))
        scores = [step.candidates[step.kept].score for step in one.steps if step.kept is not None]
        ctx.log.sample(
            STAGE,
            first + len(new),
            question=one.question,
            question_image=chunk[i].image,
            steps=[{"text": s.text, "image": None if s.image is None else next(images)} for s in one.steps],
            answer=one.answer,
            reference=one.answer,
            slice=one.slice,
            rewards={"perception": sum(scores) / len(scores)} if scores else None,
            prompt=first + i,
        )


def drawn_chains(job: Path) -> list[DrawnChain]:
    """All chains that the job in this folder has drawn so far, before the surest are chosen.

    Raises:
        OSError: it has drawn none.
    """
    path = job / "runs" / STAGE / DRAWN
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {job} is not the folder of a Zero job that has begun to draw")
    return _read_back(path, 1)


def _read_back(path: Path, size: int) -> list[DrawnChain]:
    """Read the complete chunks of an earlier session; an incomplete chunk is drawn again."""
    if not path.exists():
        return []
    drawn = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            drawn.append(DrawnChain.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            break
    return drawn[: len(drawn) // size * size]


def _lines(drawn: Sequence[DrawnChain]) -> str:
    return "".join(json.dumps(one.to_json()) + "\n" for one in drawn)
