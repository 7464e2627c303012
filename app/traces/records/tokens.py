"""The tokens of traces: how they are stored, and how a person reads them. Blocking functions on a connection."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.storage import tables
from app.traces.records import store
from model.engine.messages import Tokens
from model.engine.sequence import DRAWS_PER_TOKEN
from model.text.template import Template
from model.text.vocab import Vocabulary

LAST = 0  # the part after the last complete step
P = tables.trace_tokens
_WIDEST = 1 << 16  # ids below take two bytes
_LEAST = -60_000.0  # float16 ends near 65,504


def put(connection: Connection, trace_id: str, part: int, tokens: Tokens) -> None:
    """Store the tokens of step `part`, or those after the last step (:data:`LAST`)."""
    count, width = len(tokens.ids), "H" if max(tokens.ids, default=0) < _WIDEST else "I"
    values = {
        "ids": struct.pack(f"<{count}{width}", *tokens.ids),
        "logprobs": struct.pack(f"<{count}e", *(max(value, _LEAST) for value in tokens.logprobs)),
    }
    connection.execute(sa.insert(P).values(trace_id=trace_id, part=part, **values))


@dataclass(frozen=True)
class Response:
    """A trace's stored tokens: those of each complete step, and those after the last one (empty while it runs)."""

    steps: list[Tokens]
    last: Tokens

    def num_draws(self, after_step: int, vocab: Vocabulary, *, began_after: int = 0, began_with: int = 0) -> int:
        """Random numbers consumed up to the end of a step.

        The trace was given its first `began_after` steps and began with the random number `began_with`.
        """
        if after_step < began_after:
            return DRAWS_PER_TOKEN * sum(num_drawn(step, vocab, given=True) for step in self.steps[:after_step])
        own = self.steps[began_after:after_step]
        return began_with + DRAWS_PER_TOKEN * sum(num_drawn(step, vocab) for step in own)


def num_drawn(tokens: Tokens, vocab: Vocabulary, *, given: bool = False) -> int:
    """How many of the tokens were sampled: all but end-image, and but those that were given (`given` counts them)."""
    return sum(
        token != vocab.eoi_id and (given or not math.isnan(logprob))
        for token, logprob in zip(tokens.ids, tokens.logprobs, strict=True)
    )


def response_of(connection: Connection, trace_id: str) -> Response | None:
    """The stored tokens; None unless every complete step has its own.

    Earlier versions stored none; a trace that one of them paused and a later one continued has some.
    """
    rows = connection.execute(sa.select(P).where(P.c.trace_id == trace_id).order_by(P.c.part)).all()
    parts = {row.part: unpack(row.ids, row.logprobs) for row in rows}
    last = parts.pop(LAST, Tokens())
    if not rows or list(parts) != list(range(1, store.num_complete(connection, trace_id) + 1)):
        return None
    return Response(list(parts.values()), last)


def unpack(ids: bytes, logprobs: bytes) -> Tokens:
    """Tokens from their stored columns."""
    count = len(logprobs) // 2
    width = "I" if len(ids) > 2 * count else "H"
    return Tokens(struct.unpack(f"<{count}{width}", ids), struct.unpack(f"<{count}e", logprobs))


def readable(response: Response, template: Template) -> dict[str, Any]:
    """The API's JSON: text and log-probability of each token, and each image's codes as a grid of them."""
    return {
        "steps": [{"index": index, **_readable(step, template)} for index, step in enumerate(response.steps, 1)],
        "answer": _readable(response.last, template)["tokens"],
    }


def text_length(tokens: Tokens, vocab: Vocabulary) -> int:
    """Number of tokens before the image's codes."""
    return next((i for i, token in enumerate(tokens.ids) if vocab.is_code(token)), len(tokens.ids))


def _readable(tokens: Tokens, template: Template) -> dict[str, Any]:
    vocab, length = template.vocab, text_length(tokens, template.vocab)
    shown: dict[str, Any] = {
        "tokens": [
            {"text": token_text(token, template), "logprob": _number(logprob)}
            for token, logprob in zip(tokens.ids[:length], tokens.logprobs, strict=False)
        ]
    }
    codes = [_number(p) for token, p in zip(tokens.ids, tokens.logprobs, strict=True) if vocab.is_code(token)]
    height, width = vocab.grid
    if len(codes) == height * width:
        shown["image"] = [codes[start : start + width] for start in range(0, len(codes), width)]
    return shown


def token_text(token: int, template: Template) -> str:
    """A token as a person reads it: its characters, or its name."""
    data = template.tokenizer.token_bytes(token)
    return data.decode("utf-8", "replace") if data else template.vocab.name_of(token)


def _number(logprob: float) -> float | None:
    return None if math.isnan(logprob) else round(logprob, 4)


def mean_logprob(tokens: Sequence[float]) -> float | None:
    """Mean of the known log-probabilities."""
    known = [value for value in tokens if not math.isnan(value)]
    return sum(known) / len(known) if known else None
