"""Samples a model during training: a few fixed questions, answered greedily, logged as `sample` events.

World questions are tasks that the run does not train on, one of each slice first; for files, the first samples are
used. Each look creates and discards its own engine with its own generators: training takes the same steps with and
without looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from PIL import Image

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.engine.engine import Engine
from model.engine.sequence import Completion, SamplingParams
from model.images.codes import decode_codes
from training.data.code_cache import CodeCache
from training.data.rows import DataError
from training.data.samples import EncodedSample, SampleEncoder, first_seed, trace_samples
from training.data.token_sets import ImageCoder
from training.data.traces import TraceSample
from training.jobs.context import JobContext
from training.scoring.rewards import Scorer
from training.spec.spec import PeSFTSpec, TasksData, UniTasksData

MAX_WEIGHT_BYTES = 2 << 30  # larger weights are not copied for a look
ROOM = 8  # minimum number of tokens left for the answer


class Looks:
    """The questions of one run, and the current model's answers."""

    def __init__(self, ctx: JobContext, base: LoadedCheckpoint, questions: Sequence[EncodedSample]) -> None:
        assert base.vq is not None
        self.ctx, self.base, self.questions = ctx, base, questions
        self._vq = base.vq
        self._scorer = Scorer(base.template, base.vq.codebook, base.manifest.perception)
        self._blank_warned = False

    @classmethod
    def of(cls, ctx: JobContext, base: LoadedCheckpoint, count: int) -> Looks | None:
        """Create looks for a PeSFT job; None for a large model, or without usable questions."""
        spec = ctx.spec
        assert isinstance(spec, PeSFTSpec) and base.vq is not None  # noqa: PT018
        if sum(p.nbytes for p in base.transformer.parameters()) > MAX_WEIGHT_BYTES:
            ctx.log.log("the model is too large to be looked at while it trains")
            return None
        data = spec.data
        if isinstance(data, UniTasksData | TasksData):
            after = first_seed(data, spec.seed) + data.num_samples
            data = data.model_copy(update={"first_seed": after, "num_samples": count})
        try:
            samples = trace_samples(data, spec.seed, base.vq.config.resolution)
            found: Iterable[TraceSample] = (s for s in samples if isinstance(s, TraceSample))
            coder = ImageCoder(base.vq, device=ctx.device, known=CodeCache.of_job(ctx.folder, base.vq))
            encoder = SampleEncoder(coder, base.vocab)
            encoded = [s for s in encoder.encode(list(islice(found, count))) if isinstance(s, EncodedSample)]
        except (DataError, ValueError) as error:
            ctx.log.log(f"no looks at the model: {error}")
            return None
        room = base.config.transformer.context_len - ROOM
        questions = [s for s in encoded if len(base.template.prompt_ids(s.question, s.images)) <= room]
        return cls(ctx, base, questions) if questions else None

    def show(self, stage: str, step: int) -> None:
        """Answer and log every question."""
        base, template = self.base, self.base.template
        engine = Engine(base.transformer, base.vocab, template, num_slots=len(self.questions))
        prompts = [template.prompt_ids(s.question, s.images) for s in self.questions]
        completions = engine.generate(prompts, SamplingParams(temperature=0.0))
        flat = images = 0
        for number, (sample, completion) in enumerate(zip(self.questions, completions, strict=True)):
            verdicts = self._log_sample(stage, step, number, sample, completion)
            flat += verdicts.count("flat")
            images += len(verdicts)
        if step and flat > images / 2 and not self._blank_warned:
            self._blank_warned = True
            self.ctx.log.warning("blank_pictures", f"{flat} of {images} pictures drawn after step {step} are blank")

    def _log_sample(
        self, stage: str, step: int, number: int, sample: EncodedSample, completion: Completion
    ) -> list[str]:
        seen = sample.images[-1] if sample.images else None
        reward = self._scorer.score(completion.token_ids, sample.answer, seen=seen)
        codes = [c for _, c in reward.steps if c is not None]
        drawn = iter(decode_codes(self._vq, codes))
        question_image: Image.Image | None = decode_codes(self._vq, [seen])[0] if seen is not None else None
        self.ctx.log.sample(
            stage,
            step,
            question=sample.question,
            question_image=question_image,
            steps=[{"text": text, "image": next(drawn) if c is not None else None} for text, c in reward.steps],
            answer=reward.answer,
            reference=sample.answer,
            slice=sample.slice,
            rewards=reward.as_dict(),
            prompt=number,
        )
        return [image.verdict for image in reward.images]
