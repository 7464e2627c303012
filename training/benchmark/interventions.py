"""Does an answer depend on the model's own images? Each is replaced, and the model goes on greedily from there.

A replacement keeps the response's own tokens up to the image and changes only the image's codes. In the oracle
condition every image of the response is replaced by the reference image before the model goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import eq
from typing import Any

from PIL import Image

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.images.codes import encode_images
from model.text.parser import ImageCompleted, ImageStarted
from training.benchmark.stats import Part, ratio, ratio_difference
from training.data.token_sets import EncodedTask, ImageCoder, encode_tasks
from training.spec.hyperparameters import Replacement
from training.world.task import Task
from training.world.world import SLICES, other_task

Codes = tuple[int, ...]
Correct = Callable[[int, Sequence[int]], Codes | None]

GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True)
class Drawn:
    """An image of a response: its step (from 1), its codes, and where it ends in the response's tokens."""

    step: int
    codes: Codes
    end: int


@dataclass(frozen=True)
class Response:
    """A finished response and what its question shows; `task` if the world knows the reference images."""

    prompt: list[int]
    tokens: list[int]
    seen: Codes | None
    task: Task | None


@dataclass(frozen=True)
class Continued:
    """A continuation after one image was replaced; `replaced` is the share of its codes that differ."""

    number: int  # of the response
    image: Drawn
    kind: Replacement
    replaced: float
    tokens: list[int]


def drawn_images(loaded: LoadedCheckpoint, tokens: Sequence[int]) -> list[Drawn]:
    """The complete images of a response."""
    parser = loaded.template.parser()
    return [
        Drawn(event.step, event.codes, place)
        for place, token in enumerate(tokens, 1)
        for event in parser.feed(token)
        if isinstance(event, ImageCompleted)
    ]


def edited(loaded: LoadedCheckpoint, tokens: Sequence[int], image: Drawn, codes: Codes) -> list[int]:
    """The response's own tokens up to the end of an image, with these codes in it."""
    ids = loaded.vocab.image_ids(codes)
    return [*tokens[: image.end - len(ids)], *ids]


def continue_all(
    loaded: LoadedCheckpoint,
    engine: Engine,
    begun: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    correct: Correct | None = None,
) -> list[list[int]]:
    """Continue responses greedily to their ends.

    Args:
        loaded: the checkpoint.
        engine: an idle engine on its weights.
        begun: prompt, and the response's beginning, of each.
        correct: called with the number of a response and its tokens whenever it begins an image; returns the codes to
            use instead of drawing, or None.

    Returns:
        Complete responses with their beginnings.
    """
    running = {
        str(number): engine.add_request(prompt, GREEDY, request_id=str(number), resumed=beginning)[0]
        for number, (prompt, beginning) in enumerate(begun)
    }
    while not engine.scheduler.is_idle:
        for output in engine.step():
            if correct is None or output.token != loaded.vocab.boi_id:
                continue
            sequence = running[output.request_id]
            codes = correct(int(output.request_id), sequence.response)
            if codes is not None:
                engine.abort(output.request_id)
                resumed = [*sequence.response[:-1], *loaded.vocab.image_ids(codes)]
                (running[output.request_id],) = engine.add_request(
                    sequence.prompt, GREEDY, request_id=output.request_id, resumed=resumed
                )
    return [sequence.response for sequence in running.values()]


def intervene(
    loaded: LoadedCheckpoint, engine: Engine, responses: Sequence[Response], kinds: Sequence[Replacement]
) -> list[Continued]:
    """Replace every image in every way that is possible, one at a time, and let the model go on.

    `other` is the reference image of the same step of another task of the family; without a task, the image of the
    same step of the next response that has one.
    """
    images = [drawn_images(loaded, response.tokens) for response in responses]
    codes_of = _Replacements(loaded, responses, images, kinds)
    wanted = [
        (number, image, kind, codes)
        for number, drawn in enumerate(images)
        for image in drawn
        for kind in kinds
        if (codes := codes_of(number, image, kind)) is not None
    ]
    begun = [
        (responses[number].prompt, edited(loaded, responses[number].tokens, image, codes))
        for number, image, _, codes in wanted
    ]
    continued = continue_all(loaded, engine, begun)
    return [
        Continued(number, image, kind, _differing(codes, image.codes), tokens)
        for (number, image, kind, codes), tokens in zip(wanted, continued, strict=True)
    ]


def correct_all(
    loaded: LoadedCheckpoint, engine: Engine, prompts: Sequence[Sequence[int]], known: Sequence[EncodedTask]
) -> list[list[int]]:
    """Answer with every image replaced by the reference image of its step, from the beginning.

    The model decides when to draw; its texts follow from the reference images. An image of a step that the reference
    does not have stays its own.
    """

    def reference(number: int, tokens: Sequence[int]) -> Codes | None:
        parser = loaded.template.parser()
        (step,) = [e.step for token in tokens for e in parser.feed(token) if isinstance(e, ImageStarted)][-1:]
        steps = known[number].steps
        return steps[step - 1][2] if step <= len(steps) else None

    return continue_all(loaded, engine, [(prompt, ()) for prompt in prompts], correct=reference)


def other_images(loaded: LoadedCheckpoint, places: Sequence[tuple[Task, int]]) -> list[tuple[Codes, str] | None]:
    """For each task and step, the reference image of the same step of another task, and that task's answer."""
    others = [other_task(task, step) if task.slice in SLICES else None for task, step in places]
    found = [task for task in others if task is not None]
    coded = iter(encoded(loaded, found))
    return [
        None if other is None else (next(coded).steps[step - 1][2], other.answer)
        for other, (_, step) in zip(others, places, strict=True)
    ]


def encoded(loaded: LoadedCheckpoint, tasks: Sequence[Task]) -> list[EncodedTask]:
    """Tasks with the codes of their reference images."""
    assert loaded.vq is not None
    return encode_tasks(tasks, ImageCoder(loaded.vq), total=len(tasks))


def blank_codes(loaded: LoadedCheckpoint) -> Codes:
    """The codes of a white image."""
    assert loaded.vq is not None
    (codes,) = encode_images(loaded.vq, [Image.new("RGB", (loaded.vq.config.resolution,) * 2, "white")])
    return tuple(codes)


def _differing(codes: Codes, others: Codes) -> float:
    return sum(a != b for a, b in zip(codes, others, strict=True)) / len(codes)


class _Replacements:
    """The codes that take the place of an image."""

    def __init__(
        self,
        loaded: LoadedCheckpoint,
        responses: Sequence[Response],
        images: Sequence[Sequence[Drawn]],
        kinds: Sequence[Replacement],
    ) -> None:
        self._responses, self._images = responses, images
        self._blank = blank_codes(loaded) if "blank" in kinds else None
        self._references: dict[int, list[Codes]] = {}
        self._others: dict[tuple[int, int], Codes] = {}
        tasks = [(number, r.task) for number, r in enumerate(responses) if r.task is not None]
        if "reference" in kinds:
            coded = encoded(loaded, [task for _, task in tasks])
            steps = ([codes for _, _, codes in one.steps] for one in coded)
            self._references = dict(zip((number for number, _ in tasks), steps, strict=True))
        if "other" in kinds:
            places = [(number, task, image.step) for number, task in tasks for image in images[number]]
            found = other_images(loaded, [(task, step) for _, task, step in places])
            self._others = {
                (number, step): one[0] for (number, _, step), one in zip(places, found, strict=True) if one is not None
            }

    def __call__(self, number: int, image: Drawn, kind: Replacement) -> Codes | None:
        response = self._responses[number]
        match kind:
            case "blank":
                return self._blank
            case "question":
                return response.seen
            case "previous":
                before = [one.codes for one in self._images[number] if one.end < image.end]
                return before[-1] if before else response.seen
            case "reference":
                steps = self._references.get(number, [])
                return steps[image.step - 1] if image.step <= len(steps) else None
            case "other":
                if response.task is not None:
                    return self._others.get((number, image.step))
                return next(self._of_others(number, image.step), None)

    def _of_others(self, number: int, step: int) -> Iterator[Codes]:
        after = [*range(number + 1, len(self._images)), *range(number)]
        return (one.codes for other in after for one in self._images[other] if one.step == step)


# ---- in a benchmark's answers


@dataclass(frozen=True, slots=True)
class Effect:
    """What replacing one image did to an answer."""

    step: int
    kind: str
    answer: str | None
    right: bool
    changed: bool


def summarize_effects(effects: Sequence[Sequence[Effect]], right: Sequence[bool], oracle: Sequence[bool | None]) -> Any:
    """Causal share and oracle gain over tasks, with 95 % intervals from resampling tasks.

    Args:
        effects: of each task.
        right: whether each task's own answer is right.
        oracle: whether it is with reference images; None where that was not asked.

    Returns:
        `causal_share`: share of the replacements by other images than the reference that change the answer, and
        `by_replacement` for each kind; `oracle_gain`: accuracy with reference images minus accuracy. Each is [value,
        low, high].
    """
    kinds = dict.fromkeys(one.kind for task in effects for one in task)
    row: dict[str, Any] = {"replacements": sum(map(len, effects))}
    row["causal_share"] = _changed(effects, lambda kind: kind != "reference")
    row["by_replacement"] = {kind: _changed(effects, partial(eq, kind)) for kind in kinds}
    asked = [(own, perfect) for own, perfect in zip(right, oracle, strict=True) if perfect is not None]
    if asked:
        first, second = ([(float(pair[i]), 1.0) for pair in asked] for i in (0, 1))
        row["oracle_gain"] = _rounded(ratio_difference(first, second))
        row["accuracy_with_reference"] = round(sum(perfect for _, perfect in asked) / len(asked), 4)
    return row


def _changed(effects: Sequence[Sequence[Effect]], counts: Callable[[str], bool]) -> list[float] | None:
    parts: list[Part] = []
    for task in effects:
        counted = [one.changed for one in task if counts(one.kind)]
        parts.append((float(sum(counted)), float(len(counted))))
    return _rounded(ratio(parts)) if parts else None


def _rounded(interval: tuple[float, float, float] | None) -> list[float] | None:
    return None if interval is None else [round(value, 4) for value in interval]
