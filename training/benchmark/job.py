"""The benchmark job: a checkpoint answers questions, graded by rules and optionally an endpoint; every answer is kept.

Questions come from the procedural world (seeds that never train), Omni-Bench's parquet files, M3CoT or a jsonl. Every
answer is one line of ``benchmark/<checkpoint>/predictions.jsonl`` with both verdicts; a resumed job continues after the
last complete chunk. Accuracy is reported per slice with a 95 % interval and, weighted by samples, overall.
``compare_with`` runs a second checkpoint on the same questions for a paired comparison.

Launch: ``python -m training.jobs.worker JOB_DIR``, as the server does for ``POST /v1/jobs {"method": "benchmark",
...}``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from model.checkpoint.checkpoint import CheckpointError, load_checkpoint
from model.engine.device import useful_slots
from model.engine.engine import Engine
from model.engine.sequence import Completion, SamplingParams
from model.images.codes import decode_codes
from model.precision import serving_dtype
from model.seeds import mixed_seed
from training.benchmark.evaluate import read_response
from training.benchmark.interventions import Effect, Response, correct_all, encoded, intervene
from training.benchmark.items import Item, first_seed, read_items
from training.benchmark.report import Answer, Verdicts, compare, flat_metrics, summarize_answers
from training.benchmark.verifying import job_verifier
from training.data.questions import image_codes
from training.data.rows import DataError, Intake, Rejection, attempted
from training.jobs.context import JobContext, JobError
from training.jobs.log import file_name
from training.scoring.grading import grade, same_answer
from training.scoring.judge import Case, EndpointJudge, JudgeError
from training.spec.spec import BenchmarkSpec, TasksData, UniTasksData
from training.world.world import EVAL_SEED_MIN

STAGE = "benchmark"
SURVEY_SIZE = 64  # pixels per side of images that are only checked for presence
CHUNKS_OF_SLOTS = 4  # chunk size in multiples of the concurrent sequences, so that short ones free their slots


def run(ctx: JobContext) -> dict[str, Any]:
    """Answer, judge and compare; return the object for ``result.json``.

    Raises:
        JobError: a checkpoint or the questions are unusable, or the judge rejects us.
        JobStopped: stopped; the answers so far are kept.
    """
    spec = ctx.spec
    assert isinstance(spec, BenchmarkSpec)
    hyper = spec.hyperparameters
    measured = {spec.base_checkpoint: ctx.base_folder}
    if hyper.compare_with is not None:
        if hyper.compare_with == spec.base_checkpoint:
            raise JobError("same_checkpoint", "compare_with names the measured checkpoint itself")
        if hyper.compare_with not in ctx.checkpoints:
            raise JobError("unknown_checkpoint", f"compare_with: there is no checkpoint called {hyper.compare_with!r}")
        measured[hyper.compare_with] = Path(ctx.checkpoints[hyper.compare_with])
    survey = _survey(ctx, spec)
    count = len(survey.ids)
    started = time.monotonic()
    answers: dict[str, list[Answer]] = {}
    try:
        judge = None if hyper.judge is None else EndpointJudge(hyper.judge, stop=ctx.stop)
        for number, (name, folder) in enumerate(measured.items()):
            asking = _Asking(ctx, spec, name, folder, judge, done=number * count, total=len(measured) * count)
            answers[name] = asking.answer_all(survey)
    except JudgeError as error:
        raise JobError("judge_refused", str(error)) from error
    except DataError as error:  # a task family of your own fails in the middle
        raise JobError("bad_data", str(error)) from error
    return _report(ctx, spec, answers, round(time.monotonic() - started, 1))


@dataclass(frozen=True)
class _Survey:
    """Facts about the questions, without the questions themselves."""

    ids: list[str]
    with_images: bool


def _survey(ctx: JobContext, spec: BenchmarkSpec) -> _Survey:
    """Read all questions once: unusable ones are reported before the first answer."""
    data = spec.data
    if isinstance(data, UniTasksData | TasksData) and first_seed(data) < EVAL_SEED_MIN:
        ctx.log.log(f"seeds from {first_seed(data)} may have been trained on: the numbers are not held-out ones")
    ids: list[str] = []
    rejected: list[Rejection] = []
    with_images = False
    try:
        for item in read_items(data, SURVEY_SIZE):
            ctx.check_stop()
            if isinstance(item, Rejection):
                rejected.append(item)
            else:
                ids.append(item.item_id)
                with_images |= bool(item.images)
    except (DataError, ValueError) as error:
        raise JobError("bad_data", str(error)) from error
    intake = Intake(len(ids), tuple(rejected))
    if not isinstance(data, UniTasksData | TasksData):
        ctx.log.log(intake.summary())
        ctx.log.report("data", intake.to_json())
    if rejected:
        path = ctx.run_folder(ctx.stage or STAGE) / "rejected.jsonl"
        ctx.disk.write(lambda: intake.write(path))
        ctx.log.warning("samples_rejected", intake.summary())
    if short := intake.shortfall(data.num_samples):
        ctx.log.warning("fewer_samples", short)
    if not ids:
        raise JobError("no_samples", f"there is no usable question: {intake.summary()}")
    return _Survey(ids, with_images)


class _Asking:
    """One checkpoint answers all questions."""

    def __init__(
        self,
        ctx: JobContext,
        spec: BenchmarkSpec,
        name: str,
        folder: Path,
        judge: EndpointJudge | None,
        *,
        done: int,
        total: int,
    ) -> None:
        self.ctx, self.spec, self.name, self.judge = ctx, spec, name, judge
        self.hyper = spec.hyperparameters
        self._done, self._total = done, total
        try:
            self.loaded = load_checkpoint(folder, device=ctx.device, dtype=serving_dtype(torch.device(ctx.device)))
        except CheckpointError as error:
            raise JobError("bad_checkpoint", f"{name}: {error.code}: {error.detail}") from error
        loaded = self.loaded
        slots = useful_slots(self.hyper.batch_size, loaded.transformer.device)
        self.engine = Engine(
            loaded.transformer, loaded.vocab, loaded.template, num_slots=slots, admissions_per_step=slots
        )
        self._verifier = job_verifier(ctx, self.hyper, name, self.loaded)
        self._size = slots * CHUNKS_OF_SLOTS
        self._image_size = SURVEY_SIZE if loaded.vq is None else loaded.vq.config.resolution
        self.path = ctx.folder / "benchmark" / file_name(name) / "predictions.jsonl"

    def answer_all(self, survey: _Survey) -> list[Answer]:
        """All answers in order; those of an earlier session are read back."""
        if survey.with_images and not self.loaded.can_see:
            raise JobError("base_cannot_see", f"{self.name} has no VQ: it cannot read the questions' images")
        self.ctx.disk.write(lambda: self.path.parent.mkdir(parents=True, exist_ok=True))
        answers = self._read_back(survey.ids)
        items = islice(
            (i for i in read_items(self.spec.data, self._image_size) if isinstance(i, Item)), len(answers), None
        )
        text = _lines(answers)
        self.ctx.disk.replace(self.path, lambda path: path.write_text(text, "utf-8"))
        stage, began, before = self.ctx.stage or STAGE, self.ctx.clock(), len(answers)
        while len(answers) < len(survey.ids):
            self.ctx.check_stop()
            chunk = list(islice(items, self._size))
            if [item.item_id for item in chunk] != survey.ids[len(answers) : len(answers) + self._size]:
                raise JobError("bad_data", "the questions changed while the job was running")
            fresh = self._answer(chunk, first=len(answers))
            self.ctx.disk.append(self.path, _lines(fresh))
            answers += fresh
            pace = (self.ctx.clock() - began) / (len(answers) - before)
            step = self._done + len(answers)
            self.ctx.log.progress(stage, step, self._total, pace * (self._total - step))
        if self.judge is not None and (failed := sum(a.judge is not None and a.judge.right is None for a in answers)):
            reason = next(a.judge.detail for a in answers if a.judge is not None and a.judge.right is None)
            self.ctx.log.warning(
                "judge_silent",
                f"the judge could not say for {failed} of {len(answers)} answers ({reason}); the rules count",
            )
        return answers

    def _answer(self, chunk: Sequence[Item], *, first: int) -> list[Answer]:
        loaded, hyper = self.loaded, self.hyper
        room = loaded.config.transformer.context_len
        prompts: list[list[int]] = []
        params: list[SamplingParams] = []
        seen: list[tuple[int, ...] | None] = []
        problems: list[str | None] = []
        for item in chunk:
            ids, last, problem = self._prompt(item)
            if problem is None and len(ids) >= room:
                problem = f"a prompt of {len(ids)} tokens leaves no room in a context of {room}"
            problems.append(problem)
            seen.append(last)
            if problem is None:
                prompts.append(ids)
                params.append(
                    SamplingParams(
                        temperature=hyper.temperature,
                        top_p=hyper.top_p,
                        seed=mixed_seed(self.spec.seed, item.item_id),
                        max_new_tokens=hyper.max_new_tokens,
                        max_images=hyper.max_images if loaded.can_draw else 0,
                        candidates=hyper.candidates,
                    )
                )
        completions = self.engine.generate(prompts, params, verifier=self._verifier)
        given = iter(zip(prompts, completions, strict=True))
        answers: list[Answer] = []
        responses: dict[int, Response] = {}
        for item, codes, problem in zip(chunk, seen, problems, strict=True):
            if problem is not None:
                answers.append(_unanswered(item, problem))
            else:
                prompt, completion = next(given)
                responses[len(answers)] = Response(prompt, completion.token_ids, codes, item.task)
                answers.append(self._read(item, codes, completion, number=first + len(answers)))
        if hyper.interventions and loaded.can_draw:
            self._replace_images(chunk, answers, responses)
        if self.judge is None:
            return answers
        cases = [Case(i.question, i.reference, a.answer) for i, a in zip(chunk, answers, strict=True)]
        return [a.judged(v) for a, v in zip(answers, self.judge.judge_all(cases), strict=True)]

    def _replace_images(self, chunk: Sequence[Item], answers: list[Answer], responses: Mapping[int, Response]) -> None:
        """Add to each answer what replacing the response's images changes."""
        loaded, numbers = self.loaded, list(responses)
        kinds = list(dict.fromkeys(self.hyper.interventions))
        effects: dict[int, list[Effect]] = {number: [] for number in numbers}
        for one in intervene(loaded, self.engine, list(responses.values()), kinds):
            number = numbers[one.number]
            answer, right = self._grade(chunk[number], one.tokens)
            changed = not same_answer(answer, answers[number].answer)
            effects[number].append(Effect(one.image.step, one.kind, answer, right, changed))
        perfect: dict[int, bool] = {}
        known = [number for number in numbers if chunk[number].task is not None]
        if "reference" in kinds and known:
            tasks = encoded(loaded, [task for n in known if (task := chunk[n].task) is not None])
            corrected = correct_all(loaded, self.engine, [responses[n].prompt for n in known], tasks)
            perfect = {n: self._grade(chunk[n], tokens)[1] for n, tokens in zip(known, corrected, strict=True)}
        for number in numbers:
            answers[number] = replace(
                answers[number], effects=tuple(effects[number]), right_with_reference=perfect.get(number)
            )

    def _grade(self, item: Item, tokens: Sequence[int]) -> tuple[str | None, bool]:
        """The answer of a response, and whether it is right by the rules."""
        answer = read_response(self.loaded, tokens, None, None).answer
        return answer, grade(answer, item.reference, item.choices, exact=item.exact).score >= 1.0

    def _prompt(self, item: Item) -> tuple[list[int], tuple[int, ...] | None, str | None]:
        vq, template = self.loaded.vq, self.loaded.template

        def encode() -> tuple[list[int], tuple[int, ...] | None]:
            codes = [image_codes(p, template, vq) for p in item.images] if vq is not None else []
            return template.prompt_ids(item.question, codes), codes[-1] if codes else None

        found = attempted(item.item_id, encode)
        return ([], None, found.detail) if isinstance(found, Rejection) else (*found, None)

    def _read(self, item: Item, seen: tuple[int, ...] | None, completion: Completion, *, number: int) -> Answer:
        loaded = self.loaded
        response = read_response(loaded, completion.token_ids, seen, item.task)
        # answers of the world's tasks are single words and numbers: a judge adds nothing
        graded = grade(response.answer, item.reference, item.choices, exact=item.exact)
        answer = Answer(
            item_id=item.item_id,
            slice=item.slice,
            group=item.group,
            question=item.question,
            reference=item.reference,
            answer=response.answer,
            texts=tuple(text for text, _ in response.steps),
            rules=Verdicts(graded.score >= 1.0, graded.score, graded.check),
            judge=None,
            malformed=not response.well_formed,
            pictures=len(response.images),
            blank=response.blank,
            drawings_right=response.drawings_right if item.task is not None else None,
            drawings_total=response.drawings_total if item.task is not None else None,
            tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
            error="the model's numbers were not finite" if completion.finish_reason == "error" else None,
            unmarked=response.unmarked,
        )
        if number < self.hyper.show_samples and self._done == 0:
            self._show(item, answer, response.steps, number)
        return answer

    def _show(
        self, item: Item, answer: Answer, steps: Sequence[tuple[str, tuple[int, ...] | None]], number: int
    ) -> None:
        vq = self.loaded.vq
        codes = [c for _, c in steps if c is not None]
        drawn = iter(decode_codes(vq, codes) if vq is not None and self.loaded.can_draw else [])
        images = [image for image in item.images if isinstance(image, Image.Image)]
        self.ctx.log.sample(
            self.ctx.stage or STAGE,
            0,
            question=item.question,
            question_image=images[0].convert("RGB") if images else None,
            steps=[{"text": text, "image": None if c is None else next(drawn, None)} for text, c in steps],
            answer=answer.answer,
            reference=item.reference,
            slice=item.slice,
            rewards={"accuracy": answer.rules.score, "format": float(not answer.malformed)},
            prompt=number,
        )

    def _read_back(self, ids: Sequence[str]) -> list[Answer]:
        """Complete chunks of an earlier session, as long as they match these questions."""
        if not (self.ctx.resume and self.path.exists()):
            return []
        answers: list[Answer] = []
        for line, item_id in zip(self.path.read_bytes().split(b"\n")[:-1], ids, strict=False):
            try:
                answer = Answer.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError):
                break
            if answer.item_id != item_id:
                break
            answers.append(answer)
        return answers if len(answers) == len(ids) else answers[: len(answers) // self._size * self._size]


def _report(ctx: JobContext, spec: BenchmarkSpec, answers: dict[str, list[Answer]], seconds: float) -> dict[str, Any]:
    """Write metrics, reports and files of all measured checkpoints."""
    stage = ctx.stage or STAGE
    result: dict[str, Any] = {"seconds": seconds, "checkpoints": {}}
    for name, given in answers.items():
        summary = summarize_answers(given)
        metrics = flat_metrics(summary)
        folder = ctx.folder / "benchmark" / file_name(name)
        data = ctx.record(spec.data.model_dump(mode="json"))
        about = {"checkpoint": name, "data": data, "summary": summary, **ctx.provenance}
        text = json.dumps(about, indent=2, ensure_ascii=False, default=str) + "\n"
        ctx.disk.replace(folder / "summary.json", partial(Path.write_text, data=text, encoding="utf-8"))
        if name == spec.base_checkpoint:  # the other checkpoint's numbers are in its report
            ctx.log.metrics(stage, len(given), metrics)
        predictions = str((folder / "predictions.jsonl").relative_to(ctx.folder))
        ctx.log.report("benchmark", {"checkpoint": name, "predictions": predictions, "summary": summary})
        result["checkpoints"][name] = {"metrics": metrics, "summary": summary, "predictions": predictions}
    names = list(answers)
    result["metrics"] = result["checkpoints"][names[0]]["metrics"]
    if len(names) == 2:
        result["comparison"] = compare(names[1], answers[names[1]], names[0], answers[names[0]], seed=spec.seed)
        ctx.log.report("comparison", result["comparison"])
    return result


def _lines(answers: Sequence[Answer]) -> str:
    return "".join(json.dumps(answer.to_json(), ensure_ascii=False) + "\n" for answer in answers)


def _unanswered(item: Item, problem: str) -> Answer:
    """A question that could not be answered counts as wrong, with the reason."""
    return Answer(
        item_id=item.item_id,
        slice=item.slice,
        group=item.group,
        question=item.question,
        reference=item.reference,
        answer=None,
        texts=(),
        rules=Verdicts(False, 0.0, "none"),
        judge=None,
        malformed=True,
        pictures=0,
        blank=0,
        drawings_right=None,
        drawings_total=None,
        tokens=0,
        finish_reason="error",
        error=problem,
    )
