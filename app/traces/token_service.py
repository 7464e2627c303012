"""The tokens of a trace: their log-probabilities, alternatives, and how much they depend on the images."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from app.checkpoints.registry import CheckpointRegistry
from app.common import pools
from app.contract.problems import Problem, field_problem
from app.contract.schemas_branches import AlternativesIn
from app.contract.schemas_why import AttentionIn
from app.contract.words import TERMINAL
from app.storage.database import Database
from app.traces.intake import Intake
from app.traces.reader import no_trace
from app.traces.records import store, tokens
from app.traces.records.rewards import TraceParts, parts_of
from app.traces.records.tokens import Response
from model.engine.messages import AlternativesQuery, EngineError, Generation, ImageInput, Tokens, WholeResponse
from model.engine.sequence import SamplingParams
from model.text.template import Template

ALTERNATIVES = 5


def part_of(response: Response, step: int | str, path: str) -> Tokens:
    """The tokens of a step or of the answer; 422 if there are none."""
    if step == "answer":
        if not response.last.ids:
            raise field_problem("no_such_step", path, "the trace has no answer")
        return response.last
    assert isinstance(step, int)
    if not 1 <= step <= len(response.steps):
        raise field_problem("no_such_step", path, f"the trace has {len(response.steps)} complete steps")
    return response.steps[step - 1]


def check_token(chunk: Tokens, token: int, template: Template, path: str) -> None:
    """422 for a token that `GET …/tokens` does not list."""
    listed = tokens.text_length(chunk, template.vocab)
    if token >= listed:
        raise field_problem("no_such_token", path, f"this part has only {listed} text tokens")


def no_tokens() -> Problem:
    """409 for traces of earlier versions."""
    return Problem("no_tokens", "an earlier version made this trace and stored no tokens; ask its question again")


def _whole(
    row: Any, response: Response, inputs: tuple[ImageInput, ...], checkpoint: str, version: int
) -> WholeResponse:
    steps, last = tuple(step.ids for step in response.steps), response.last.ids
    return WholeResponse(checkpoint, version, row.question, inputs, steps, last, SamplingParams(**row.sampling))


def _named(ids: Mapping[int, list[str]], steps: Sequence[int]) -> list[str | None]:
    """The id of each image, given its step: those of the question come in order."""
    left = {step: iter(found) for step, found in ids.items()}
    return [next(left[step], None) if step in left else None for step in steps]


def _rounded(nats: float) -> float:
    return round(nats, 4) + 0.0  # without a negative zero


class TokenService:
    """Answers from stored tokens, and from one forward pass of the trace's own weights."""

    def __init__(self, db: Database, intake: Intake, checkpoints: CheckpointRegistry, generation: Generation) -> None:
        self._db = db
        self._intake = intake
        self._checkpoints = checkpoints
        self._generation = generation

    def tokens(self, trace_id: str) -> dict[str, Any]:
        """Every token with its log-probability; blocking; 409 ``no_tokens``."""
        row, response = self._stored(trace_id)
        return tokens.readable(response, self._template(row))

    def parts(self, trace_id: str) -> TraceParts:
        """A finished trace as rewards see it; blocking; 409 ``trace_live``, ``no_answer`` or ``no_tokens``."""
        row, response = self._stored(trace_id)
        if row.status != "completed":
            code = "trace_live" if row.status not in TERMINAL else "no_answer"
            raise Problem(code, f"the trace is {row.status}; only a completed one can be scored")
        info = self._checkpoints.with_version(row.checkpoint, row.weight_version)
        with self._db.read() as connection:
            trace = store.whole_row(connection, row)
        scale = info.manifest.perception if info.manifest else None
        reference, unchanged = None, frozenset[int]()
        if row.task_id is not None:
            from training.world.task import identity_steps
            from training.world.world import task_of_id

            task = task_of_id(row.task_id)
            reference, unchanged = task.answer, identity_steps(task)
        template = self._checkpoints.template(info)
        return parts_of(trace, response, template, scale, reference=reference, identity_steps=unchanged)

    async def alternatives(self, trace_id: str, body: AlternativesIn) -> dict[str, Any]:
        """The likeliest tokens at a position of a trace."""
        row, response, template, inputs = await pools.intake.run(self._read, trace_id)
        chunk = part_of(response, body.step, "body.step")
        check_token(chunk, body.token, template, "body.token")
        before = response.steps if body.step == "answer" else response.steps[: int(body.step) - 1]
        given = [token for step in before for token in step.ids] + list(chunk.ids[: body.token])
        sampling = SamplingParams(**row.sampling)
        async with self._weights(row) as (name, version):
            query = AlternativesQuery(name, version, row.question, inputs, tuple(given), sampling, ALTERNATIVES)
            found = await self._generation.alternatives(query)
        texts = [tokens.token_text(one.id, template) for one in found]
        return {
            "data": [
                {"id": one.id, "text": text, "logprob": round(one.logprob, 4)}
                for one, text in zip(found, texts, strict=True)
            ]
        }

    async def reliance(self, trace_id: str) -> dict[str, Any]:
        """How much the answer and each step rely on each image; 409 ``no_answer`` without an answer."""
        row, response, _, inputs = await pools.intake.run(self._read, trace_id)
        async with self._weights(row) as (name, version):
            found = await self._generation.reliance(_whole(row, response, inputs, name, version))
        ids = await pools.reads.run(self._image_ids, row)
        images = [
            {
                "step": image.step,
                "image_id": image_id,
                "reliance": _rounded(image.answer),
                "per_step": [_rounded(value) for value in image.per_step],
            }
            for image, image_id in zip(found.images, _named(ids, [image.step for image in found.images]), strict=True)
        ]
        return {"answer_logprob": _rounded(found.answer_logprob), "images": images, "method": "masking"}

    async def attention(self, trace_id: str, body: AttentionIn) -> dict[str, Any]:
        """How much the tokens of a step or of the answer attend to each image up to them."""
        row, response, _, inputs = await pools.intake.run(self._read, trace_id)
        step = None if body.from_ == "answer" else body.from_.step
        if step is not None:
            part_of(response, step, "body.from.step")
        async with self._weights(row) as (name, version):
            found = await self._generation.attention(_whole(row, response, inputs, name, version), step)
        ids = await pools.reads.run(self._image_ids, row)
        images = [
            {
                "step": image.step,
                "image_id": image_id,
                "share": round(sum(map(sum, image.grid)), 6),
                "grid": [[round(value, 6) for value in line] for line in image.grid],
            }
            for image, image_id in zip(found, _named(ids, [image.step for image in found]), strict=True)
        ]
        return {"images": images, "layers": "last third", "method": "attention"}

    @contextlib.asynccontextmanager
    async def _weights(self, row: Any) -> AsyncIterator[tuple[str, int]]:
        """Name and version of a trace's own weights, loaded while in use; engine errors become problems."""
        info, lease = await self._checkpoints.lend_row(row.checkpoint, row.weight_version)
        try:
            yield info.name, lease.version
        except EngineError as error:
            code = error.code if error.code in ("weights_gone", "no_answer") else "not_ready"
            raise Problem(code, error.detail) from None
        finally:
            lease.release()

    def _image_ids(self, row: Any) -> dict[int, list[str]]:
        """The ids of the question's images (0) and of each step's."""
        with self._db.read() as connection:
            steps = store.whole_row(connection, row)["steps"]
        found = {step["index"]: [step["image"]["image_id"]] for step in steps if step.get("image")}
        return {0: [image["image_id"] for image in row.images]} | found

    def _read(self, trace_id: str) -> tuple[Any, Response, Template, tuple[ImageInput, ...]]:
        row, response = self._stored(trace_id)
        return row, response, self._template(row), self._intake.inputs(row.images)

    def _stored(self, trace_id: str) -> tuple[Any, Response]:
        with self._db.read() as connection:
            row = store.get_row(connection, trace_id)
            if row is None:
                raise no_trace()
            response = tokens.response_of(connection, trace_id)
            if response is None and row.answer is None and not store.num_complete(connection, trace_id):
                response = Response([], Tokens())  # it had just begun
        if response is None:
            raise no_tokens()
        return row, response

    def _template(self, row: Any) -> Template:
        return self._checkpoints.template(self._checkpoints.with_version(row.checkpoint, row.weight_version))
