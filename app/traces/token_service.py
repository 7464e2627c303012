"""The tokens of a trace with their log-probabilities, and the tokens that could have stood in their place."""

from __future__ import annotations

from typing import Any

from app.checkpoints.registry import CheckpointRegistry
from app.common import pools
from app.contract.problems import Problem, field_problem
from app.contract.schemas_branches import AlternativesIn
from app.storage.database import Database
from app.traces.intake import Intake
from app.traces.reader import no_trace
from app.traces.records import store, tokens
from app.traces.records.tokens import Response
from model.engine.messages import AlternativesQuery, EngineError, Generation, ImageInput, Tokens
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

    async def alternatives(self, trace_id: str, body: AlternativesIn) -> dict[str, Any]:
        """The likeliest tokens at a position of a trace."""
        row, response, template, inputs = await pools.intake.run(self._read, trace_id)
        chunk = part_of(response, body.step, "body.step")
        check_token(chunk, body.token, template, "body.token")
        before = response.steps if body.step == "answer" else response.steps[: int(body.step) - 1]
        given = [token for step in before for token in step.ids] + list(chunk.ids[: body.token])
        info = await pools.intake.run(self._checkpoints.with_version, row.checkpoint, row.weight_version)
        lease = await self._checkpoints.lend_this(info)
        try:
            sampling = SamplingParams(**row.sampling)
            found = await self._generation.alternatives(
                AlternativesQuery(info.name, lease.version, row.question, inputs, tuple(given), sampling, ALTERNATIVES)
            )
        except EngineError as error:
            code = "weights_gone" if error.code == "weights_gone" else "not_ready"
            raise Problem(code, error.detail) from None
        finally:
            lease.release()
        texts = [tokens.token_text(one.id, template) for one in found]
        return {
            "data": [
                {"id": one.id, "text": text, "logprob": round(one.logprob, 4)}
                for one, text in zip(found, texts, strict=True)
            ]
        }

    def _read(self, trace_id: str) -> tuple[Any, Response, Template, tuple[ImageInput, ...]]:
        row, response = self._stored(trace_id)
        return row, response, self._template(row), self._intake.inputs(row.images)

    def _stored(self, trace_id: str) -> tuple[Any, Response]:
        with self._db.read() as connection:
            row = store.get_row(connection, trace_id)
            if row is None:
                raise no_trace()
            response = tokens.response_of(connection, trace_id)
        if response is None:
            raise no_tokens()
        return row, response

    def _template(self, row: Any) -> Template:
        return self._checkpoints.template(self._checkpoints.with_version(row.checkpoint, row.weight_version))
