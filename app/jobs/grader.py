"""Grading off the event loop: a dedicated thread with a deadline."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image
from pydantic import ValidationError

from app.contract.problems import Problem, field_problem
from app.contract.schemas_rewards import RewardIn
from app.jobs.custom import CustomRules
from app.traces.records.rewards import TraceParts
from training.spec.hyperparameters import CustomReward, RewardHyperparameters

THREADS = 1  # grading holds the GIL: more would only take turns
MAX_WAITING = 64
DEADLINE_S = 10.0  # grading takes milliseconds; this bounds the time in the queue
CUSTOM_DEADLINE_S = 150.0  # a reward of your own is imported first
CUSTOM_TIMEOUT_S = 10.0  # of a call

ReadImage = Callable[[str], bytes]


class Grader:
    """Grades answers for the API.

    Rewards of your own have a thread of their own: they may take long.
    """

    def __init__(
        self,
        rules: CustomRules | None = None,
        parts: Callable[[str], TraceParts] | None = None,
        image: ReadImage | None = None,
    ) -> None:
        """Collaborators that only some requests need.

        Args:
            rules: which rewards of your own are accepted.
            parts: reads a trace; blocking.
            image: reads the PNG of a stored image; blocking.
        """
        self._rules, self._parts, self._image = rules or CustomRules(None), parts, image
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="grader")
        self._custom = ThreadPoolExecutor(THREADS, thread_name_prefix="rewards")
        self._waiting = 0

    async def grade(
        self, answer: str | None, reference: str, choices: Sequence[str] | Mapping[str, str], *, similarity: bool
    ) -> dict[str, Any]:
        """The grade as JSON. Raises `Problem` ``grader_busy`` when the queue is full or too slow."""
        return await self._run(self._pool, DEADLINE_S, _grade, answer, reference, choices, similarity, False)

    async def score(self, body: RewardIn) -> dict[str, Any]:
        """The grade of a request with every component it asks for."""
        custom = body.reward is not None and bool(body.reward.custom)
        pool, deadline_s = (self._custom, CUSTOM_DEADLINE_S) if custom else (self._pool, DEADLINE_S)
        return await self._run(pool, deadline_s, self._score, body)

    async def _run(
        self, pool: ThreadPoolExecutor, deadline_s: float, work: Callable[..., dict[str, Any]], *given: Any
    ) -> dict[str, Any]:
        if self._waiting >= MAX_WAITING:
            raise _busy()
        self._waiting += 1
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(pool, work, *given), deadline_s)
        except TimeoutError:
            raise _busy() from None
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Accept no more answers."""
        for pool in (self._pool, self._custom):
            pool.shutdown(wait=False, cancel_futures=True)

    def _score(self, body: RewardIn) -> dict[str, Any]:
        settings = self._settings(body)
        parts = None if body.trace_id is None or self._parts is None else self._parts(body.trace_id)
        given = body.model_fields_set
        if parts is None and "answer" not in given:
            raise field_problem("invalid", "body.answer", "give an answer, or the trace_id of a trace that has one")
        reference = body.reference
        if reference is None and parts is not None:
            reference = parts.reference
        if reference is None:
            raise field_problem("invalid", "body.reference", "give the correct answer: no task has one")
        answer = body.answer if parts is None or "answer" in given else parts.answer
        exact = parts is not None and parts.reference is not None and reference == parts.reference
        scored = _grade(answer, reference, body.choices, body.similarity, exact)
        if parts is not None:
            scored |= _components(parts)
        extra = 0.0
        if settings.custom:
            scored["custom"] = self._own(settings.custom, body, scored, answer, reference, parts)
            extra = sum(one["weight"] * one["value"] for one in scored["custom"].values())
        if parts is not None:
            names = {"alpha": "accuracy", "beta": "format", "gamma": "perception", "functional": "functional"}
            scored["weights"] = {name: getattr(settings, name) for name in names}
            values = [(weight, scored.get(names[name])) for name, weight in scored["weights"].items()]
            known = all(value is not None or weight == 0 for weight, value in values)
            scored["total"] = sum(weight * (value or 0.0) for weight, value in values) + extra if known else None
        return scored

    def _settings(self, body: RewardIn) -> RewardHyperparameters:
        """The weights and rewards of a request; 422 for those that a job would not accept either."""
        asked = {} if body.reward is None else body.reward.model_dump(exclude_none=True)
        try:
            settings = RewardHyperparameters.model_validate(asked)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(map(str, ("body", "reward", *first["loc"])))
            raise field_problem("invalid", where, first["msg"].removeprefix("Value error, ")) from None
        allowed = [
            {**one, "timeout_s": min(one["timeout_s"], CUSTOM_TIMEOUT_S), "retries": 0}
            for one in self._rules.checked(settings.custom, "body.reward.custom")
        ]
        return settings.model_copy(update={"custom": [CustomReward.model_validate(one) for one in allowed]})

    def _own(
        self,
        rewards: Sequence[CustomReward],
        body: RewardIn,
        scored: Mapping[str, Any],
        answer: str | None,
        reference: str,
        parts: TraceParts | None,
    ) -> dict[str, Any]:
        """The values of the rewards of your own by label; 422 ``reward_failed`` if one has none."""
        from training.scoring.custom import Case, Response, ResponseStep, RewardError, Sample
        from training.scoring.custom_sources import CustomRewards

        images, drawn = self._images(parts) if parts and any(one.images for one in rewards) else ([], {})
        steps = [] if parts is None else parts.steps
        choices = tuple(body.choices.values() if isinstance(body.choices, Mapping) else body.choices)
        sample = Sample(
            parts.question if parts else "", reference, choices, parts.slice if parts else None, tuple(images)
        )
        response = Response(
            answer=answer,
            steps=tuple(ResponseStep(text, codes, drawn.get(k)) for k, (text, codes) in enumerate(steps, 1)),
            accuracy=scored["accuracy"],
            format=scored.get("format", 1.0),
            perception=scored.get("perception") or 0.0,
            num_tokens=0 if parts is None else parts.num_tokens,
        )
        try:
            opened = CustomRewards(rewards)
            try:
                (values,) = opened.score([Case(sample, response)])
            finally:
                opened.close()
        except RewardError as error:
            raise field_problem("reward_failed", "body.reward.custom", error.detail) from None
        if isinstance(values, str):
            raise field_problem("reward_failed", "body.reward.custom", values)
        weights = {one.label: one.weight for one in rewards}
        return {
            label: {"value": value.value, "weight": weights[label], "parts": dict(value.parts)}
            for label, value in values.items()
        }

    def _images(self, parts: TraceParts) -> tuple[list[Image.Image], dict[int, Image.Image]]:
        """The question's images, and the drawing of each step."""
        assert self._image is not None
        asked, drawn = parts.image_ids
        read = self._image
        return [_opened(read(id_)) for id_ in asked], {step: _opened(read(id_)) for step, id_ in drawn.items()}


def _grade(
    answer: str | None, reference: str, choices: Sequence[str] | Mapping[str, str], similarity: bool, exact: bool
) -> dict[str, Any]:
    from training.scoring.grading import grade

    graded = grade(answer, reference, choices, exact=exact, similarity=similarity)
    return {
        "accuracy": graded.score,
        "check": graded.check,
        "answer": graded.answer,
        "reference": graded.reference,
        "details": dict(graded.details),
    }


def _opened(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return image.convert("RGB")


def _components(parts: TraceParts) -> dict[str, Any]:
    found: dict[str, Any] = {
        "format": parts.format,
        "perception": parts.perception,
        "drawings": [
            {
                "step": step,
                "energy": score.energy if score else None,
                "score": score.score if score else None,
                "check": score.verdict if score else None,
                "right": parts.rights.get(step),
            }
            for step, score in parts.images
        ],
    }
    if parts.drawings is not None:
        found |= dict(zip(("drawings_right", "drawings_total"), parts.drawings, strict=True))
        found["functional"] = parts.functional
    return found


def _busy() -> Problem:
    return Problem("grader_busy", "too many answers are being graded; retry shortly", headers={"Retry-After": "1"})
