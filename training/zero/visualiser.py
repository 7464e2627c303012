"""Draws the images of a text-only chain with a base model, step by step and best of n (method, section 4).

For each step the model sees the question's image, the previous steps with their kept images and the step's text;
begin-image is forced, the serving engine draws n candidates, and the best one under a selectable score is kept. Flat
images (which a perception score prefers) and copies of the previous image are always rejected. The result for a chain
depends on the seed and the chain alone, never on the rest of the batch.

Knows nothing of jobs, files or training. A candidate's `right`, if the world knows it, is only reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from model.checkpoint.manifest import Perception
from model.engine.device import useful_slots
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams, Status
from model.engine.verifier import order_logprobs
from model.images.codes import copied_share, decode_codes, encode_images, is_flat, perception_score, tv_energy
from model.seeds import mixed_seed
from model.text.instructions import as_instruction
from model.text.template import ImagePart, StepPart, Template, TextPart
from training.scoring.rewards import changes_nothing
from training.world.checkers import check_step
from training.world.task import SIZE

if TYPE_CHECKING:
    from model.checkpoint.checkpoint import LoadedCheckpoint
    from model.engine.sequence import Sequence as Running
    from training.data.chains import TextChain
    from training.spec.hyperparameters import ZeroHyperparameters

Codes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One image drawn for a step.

    Attributes:
        codes: its codes.
        energy: its E_2D.
        perception: its uncapped score 1 / (1 + E_2D / tau).
        score: R_Pe with its guards: 0 for a flat image or a copy, capped at the references' 95th percentile.
        logprob: mean log-probability of its codes.
        flat: nearly blank.
        copied: equal to the previous image.
        right: the world's verdict; None if unknown.
        verified: log p(order | previous image, candidate) by the base, if it chooses by that and there is one before.
    """

    codes: Codes
    energy: float
    perception: float
    score: float
    logprob: float
    flat: bool
    copied: bool
    right: bool | None = None
    verified: float | None = None

    @property
    def accepted(self) -> bool:
        """Whether the candidate may be kept."""
        return not (self.flat or self.copied)


@dataclass(frozen=True, slots=True)
class DrawnStep:
    """A step's text, its candidates, and the index of the kept one (None: none)."""

    text: str
    candidates: tuple[Candidate, ...] = ()
    kept: int | None = None
    broken: int = 0  # candidates that ended in an engine error

    @property
    def image(self) -> Codes | None:
        """Codes of the kept candidate."""
        return None if self.kept is None else self.candidates[self.kept].codes


@dataclass(slots=True)
class DrawnChain:
    """A chain with its images, or why it is rejected: ``no_steps``, ``too_long``, ``no_picture``, ``unsure``."""

    chain_id: str
    slice: str
    question: str
    answer: str
    question_codes: Codes | None
    texts: tuple[str, ...]
    steps: list[DrawnStep] = field(default_factory=list)
    rejected: str | None = None
    kind: str = ""

    @property
    def images(self) -> list[Codes]:
        """The question's image and the kept ones, in order."""
        every = (self.question_codes, *(step.image for step in self.steps))
        return [codes for codes in every if codes is not None]

    @property
    def newest_image(self) -> Codes | None:
        """The image that the next step starts from."""
        return next(reversed(self.images), None)

    def step_parts(self) -> list[StepPart]:
        """The steps drawn so far, for the template."""
        return [StepPart(step.text, step.image) for step in self.steps]

    def to_json(self) -> dict[str, Any]:
        """Convert to one line of the file of drawn chains."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DrawnChain:
        """Parse the result of :meth:`to_json`."""
        steps = [
            DrawnStep(
                step["text"],
                tuple(Candidate(**{**c, "codes": tuple(c["codes"])}) for c in step["candidates"]),
                step["kept"],
                step["broken"],
            )
            for step in data["steps"]
        ]
        codes = data["question_codes"]
        given = {
            "steps": steps,
            "texts": tuple(data["texts"]),
            "question_codes": None if codes is None else tuple(codes),
        }
        return cls(**{**data, **given})


class Visualiser:
    """Draws with one checkpoint under fixed settings."""

    def __init__(
        self, loaded: LoadedCheckpoint, settings: ZeroHyperparameters, *, seed: int, output: Template | None = None
    ) -> None:
        """``output`` is the template in which the finished traces must fit (the checkpoint's own when absent).

        Raises:
            ValueError: the checkpoint cannot draw, or cannot judge what it draws.
        """
        if settings.score == "verifier" and not loaded.manifest.verifier:
            raise ValueError(f"{loaded.name} is no verifier: its manifest names no question")
        if loaded.vq is None or loaded.vq.decoder is None:
            raise ValueError(f"{loaded.name} has no VQ decoder: it cannot draw")
        self.loaded, self.vq, self.settings, self.seed = loaded, loaded.vq, settings, seed
        self.template = loaded.template
        self.output = output or loaded.template
        self.perception = loaded.manifest.perception or Perception()
        slots = useful_slots(settings.batch_size, loaded.transformer.device)
        self.engine = Engine(
            loaded.transformer, loaded.vocab, loaded.template, num_slots=slots, admissions_per_step=slots
        )
        one_is_enough = settings.score == "first" or settings.temperature == 0.0
        self.num_candidates = 1 if one_is_enough else settings.candidates

    def draw(self, chains: Sequence[TextChain]) -> list[DrawnChain]:
        """Draw every chain; each returns with an image per step or a rejection reason, in order."""
        with_image = [chain for chain in chains if chain.image is not None]
        codes = iter(encode_images(self.vq, [chain.image for chain in with_image if chain.image is not None]))
        drawn = []
        for chain in chains:
            question = next(codes) if chain.image is not None else None
            texts = (chain.chain_id, chain.slice, chain.question, chain.answer)
            drawn.append(DrawnChain(*texts, question, chain.steps, kind=chain.kind))
        for one in drawn:
            if not one.texts or not self._fits(one):
                one.rejected = "too_long" if one.texts else "no_steps"
        for k in range(max((len(chain.steps) for chain in chains), default=0)):
            live = [i for i, one in enumerate(drawn) if one.rejected is None and k < len(one.texts)]
            for i, step in zip(live, self._draw_steps([drawn[i] for i in live], k), strict=True):
                step = self._judged(chains[i], drawn[i], k, step)
                drawn[i].steps.append(step)
                if step.kept is None and self.settings.on_rejected == "drop":
                    drawn[i].rejected = "no_picture"
        return drawn

    def _fits(self, one: DrawnChain) -> bool:
        """Whether the complete trace fits into the context, both for drawing and for training."""
        blank = (0,) * self.loaded.vocab.codes_per_image
        steps = [StepPart(text, blank) for text in one.texts]
        images = [] if one.question_codes is None else [one.question_codes]
        longest = max(
            len(template.render(one.question, images, steps, one.answer).ids)
            for template in {id(t): t for t in (self.template, self.output)}.values()
        )
        return longest <= self.engine.context_len

    def _draw_steps(self, live: Sequence[DrawnChain], k: int) -> list[DrawnStep]:
        """Draw step k (from 0) of each chain."""
        engine, n = self.engine, self.loaded.vocab.codes_per_image
        running: list[list[Running]] = []
        for number, one in enumerate(live):
            prompt, begun = self._context(one, k)
            params = SamplingParams(
                temperature=self.settings.temperature,
                top_p=self.settings.top_p,
                seed=mixed_seed(self.seed, one.chain_id, k),
                max_new_tokens=len(begun) + n + 1,
            )
            running.append(
                engine.add_request(
                    prompt, params, request_id=f"draw-{number}", num_samples=self.num_candidates, resumed=begun
                )
            )
        broken: set[tuple[str, int]] = set()
        while not engine.scheduler.is_idle:
            for output in engine.step():
                if output.finished_by == "error":
                    broken.add((output.request_id, output.index))
        steps = []
        for one, sequences in zip(live, running, strict=True):
            whole = [s for s in sequences if (s.request_id, s.index) not in broken and s.status is Status.FINISHED]
            # A step without changes may be drawn as a copy.
            previous = None if changes_nothing(one.texts[k]) else one.newest_image
            candidates = self._candidates(whole, previous)
            if self.settings.score == "verifier":
                candidates = self._verified(one, k, candidates)
            kept = best(candidates, self.settings.score)
            steps.append(DrawnStep(one.texts[k], tuple(candidates), kept, len(sequences) - len(whole)))
        return steps

    def _context(self, one: DrawnChain, k: int) -> tuple[list[int], list[int]]:
        """The prompt, and the response up to and including the forced begin-image."""
        text, boi = one.texts[k], self.loaded.vocab.boi_id
        if self.settings.context != "trajectory":
            given = [ImagePart(codes) for codes in one.images[-self.settings.pictures_shown :]]
            said = as_instruction(text) if self.settings.context == "instruction" else text
            prompt = self.template.render_parts([*given, TextPart(said)], []).ids[:-1]  # without EOS
            return prompt, [boi]
        images = [] if one.question_codes is None else [one.question_codes]
        steps = self.template.steps_ids([*one.step_parts(), StepPart(text)])
        return self.template.prompt_ids(one.question, images), [*self.template.opening_ids(), *steps, boi]

    def _candidates(self, sequences: Sequence[Running], previous: Codes | None) -> list[Candidate]:
        if not sequences:
            return []
        vocab, n = self.loaded.vocab, self.loaded.vocab.codes_per_image
        drawn = []
        for sequence in sequences:
            ids = sequence.response[sequence.num_resumed : sequence.num_resumed + n]
            drawn.append(tuple(code for code in map(vocab.id_to_code, ids) if code is not None))
        grids = self.vq.codebook.detach()[torch.tensor(drawn, device=self.vq.codebook.device)]
        energies = tv_energy(grids.view(len(drawn), *vocab.grid, -1)).tolist()
        out = []
        for sequence, codes, energy in zip(sequences, drawn, energies, strict=True):
            flat = is_flat(codes, self.perception, energy)
            copied = previous is not None and copied_share(codes, previous) >= self.settings.copied_share
            logprobs = sequence.logprobs[sequence.num_resumed : sequence.num_resumed + n]
            out.append(
                Candidate(
                    codes=codes,
                    energy=round(energy, 6),
                    perception=round(1.0 / (1.0 + energy / self.perception.tau), 6),
                    score=0.0 if flat or copied else round(perception_score(energy, self.perception), 6),
                    logprob=round(sum(logprobs) / n, 6),
                    flat=flat,
                    copied=copied,
                )
            )
        return out

    def _verified(self, one: DrawnChain, k: int, candidates: list[Candidate]) -> list[Candidate]:
        """The candidates with the base's own verdict, unless there is no image to compare them with."""
        before = one.newest_image
        if before is None:
            return candidates
        question, orders = self.loaded.manifest.verifier, [as_instruction(one.texts[k])] * len(candidates)
        codes = [candidate.codes for candidate in candidates]
        found = order_logprobs(self.engine, self.template, question, before, codes, orders)
        return [replace(c, verified=round(value, 6)) for c, value in zip(candidates, found, strict=True)]

    def _judged(self, chain: TextChain, one: DrawnChain, k: int, step: DrawnStep) -> DrawnStep:
        """The step with the world's verdict on every candidate."""
        before = one.newest_image
        if chain.task is None or before is None or not step.candidates:
            return step
        images = decode_codes(self.vq, [before, *(c.codes for c in step.candidates)])
        seen, *drawn = [p if p.size == (SIZE, SIZE) else p.resize((SIZE, SIZE), _LANCZOS) for p in images]
        verdicts = [check_step(chain.task, k + 1, seen, image) for image in drawn]
        candidates = tuple(replace(c, right=ok) for c, ok in zip(step.candidates, verdicts, strict=True))
        return replace(step, candidates=candidates)


_LANCZOS = Image.Resampling.LANCZOS


def best(candidates: Sequence[Candidate], score: str) -> int | None:
    """Index of the candidate to keep, or None where all are rejected.

    Args:
        candidates: in drawing order.
        score: ``perception`` (the highest R_Pe; ties go to the likelier one), ``likelihood`` (the highest mean
            log-probability), ``verifier`` (the base's own verdict, the likelier one without it) or ``first`` (the first
            one, or none).
    """
    if score == "first":
        return 0 if candidates and candidates[0].accepted else None
    accepted = [i for i, candidate in enumerate(candidates) if candidate.accepted]
    if not accepted:
        return None
    if score == "perception":
        return max(accepted, key=lambda i: (candidates[i].score, candidates[i].logprob, -i))
    if score == "likelihood":
        return max(accepted, key=lambda i: (candidates[i].logprob, -i))
    if score == "verifier":
        return max(accepted, key=lambda i: (candidates[i].verified or 0.0, candidates[i].logprob, -i))
    raise ValueError(f"unknown score {score!r}: use perception, likelihood, verifier or first")


def confidence(one: DrawnChain) -> float:
    """Confidence of a chain: the mean log-probability of the codes of its least likely image.

    A chain without images (all its steps stayed text) ranks last.
    """
    kept = [step.candidates[step.kept].logprob for step in one.steps if step.kept is not None]
    return min(kept, default=-math.inf)


def leave_out_the_unsure(drawn: Sequence[DrawnChain], keep_share: float) -> None:
    """Reject finished chains as ``unsure``, except the most confident share of each slice and kind.

    Per kind, since drawings differ: a next state has more new codes than a mark, and is less likely for it.
    """
    groups: dict[tuple[str, str], list[DrawnChain]] = {}
    for one in drawn:
        if one.rejected is None:
            groups.setdefault((one.slice, one.kind), []).append(one)
    for chains in groups.values():
        chains.sort(key=confidence, reverse=True)  # ties: the earlier chain is kept
        for one in chains[max(1, round(keep_share * len(chains))) :]:
            one.rejected = "unsure"
