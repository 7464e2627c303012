"""Questions about the tokens of a response, answered by forward passes without the cache.

They may run in another thread than the engine's steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.engine.engine import Engine
from model.engine.phases import Legal, PhaseState
from model.engine.sequence import SamplingParams, first_phase
from model.nets.attention import CausalAttention, HidingAttention, RecordedAttention

CHUNK = 128  # rows of logits at once


@torch.inference_mode()
def likeliest(
    engine: Engine, prompt: Sequence[int], response: Sequence[int], params: SamplingParams, count: int
) -> list[tuple[int, float]]:
    """The `count` likeliest legal tokens after a beginning of a response, with the log-probabilities of sampling.

    Raises:
        ValueError: the response is complete, or leaves no room.
    """
    state = _state(engine, prompt, params)
    for token in response:
        state.push(token)
    if state.finish_reason is not None:
        raise ValueError("the response is complete")
    if state.legal is Legal.FORCED:
        return [(state.forced_id, 0.0)]
    hidden = engine.forward([*prompt, *response], CausalAttention())[-1:]
    logprobs = _log_softmax(engine.logits(hidden, state.legal), params)[0]
    best = logprobs.topk(min(count, logprobs.shape[0]))
    columns = engine.ids_of(state.legal)
    found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(columns[column], value) for column, value in found if value > float("-inf")]


@torch.inference_mode()
def token_logprobs(
    engine: Engine,
    prompt: Sequence[int],
    response: Sequence[int],
    params: SamplingParams,
    *,
    hidden: range = range(0),
) -> list[float]:
    """The log-probability of each token of a response, as sampling computes it: over the legal tokens, without top-p.

    Greedy responses are scored at temperature 1. `hidden` are positions in prompt and response that no later token
    attends to; they still attend to each other. Tokens that could not be sampled where they stand have 0.0: forced
    ones, and given ones that are not legal there. One forward pass.

    Raises:
        ValueError: prompt and response exceed the context.
    """
    state, legal = _state(engine, prompt, params), []
    for token in response:
        legal.append(state.legal if state.finish_reason is None else Legal.FORCED)
        state.push(token)
    ids = [*prompt, *response]
    if len(ids) > engine.context_len:
        raise ValueError(f"prompt and response have {len(ids)} tokens, {engine.context_len} fit")
    attention = HidingAttention(hidden) if hidden else CausalAttention()
    states = engine.forward(ids, attention)[len(prompt) - 1 : -1]
    out = [0.0] * len(response)
    for kind in (Legal.TEXT, Legal.TEXT_OR_IMAGE, Legal.CODE):
        columns = {token: column for column, token in enumerate(engine.ids_of(kind))}
        rows = [i for i, one in enumerate(legal) if one is kind and response[i] in columns]
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            logprobs = _log_softmax(engine.logits(states[some], kind), params)
            wanted = torch.tensor([columns[response[i]] for i in some], device=logprobs.device)
            for i, value in zip(some, logprobs.gather(1, wanted[:, None])[:, 0].tolist(), strict=True):
                out[i] = value if value > float("-inf") else 0.0
    return out


@torch.inference_mode()
def attention_to(engine: Engine, ids: Sequence[int], rows: Sequence[int]) -> list[float]:
    """How much tokens attend to each token of a sequence, as the mean over heads and the last third of the layers.

    `rows` are positions in `ids`. Returns one weight a token, the mean over the rows; they sum to 1. One forward pass.
    """
    num_layers = engine.transformer.config.num_layers
    recorded = -(-num_layers // 3)
    attention = RecordedAttention(torch.tensor(list(rows), device=engine.device), num_layers - recorded)
    engine.forward(ids, attention)
    assert isinstance(attention.total, Tensor)
    weights: list[float] = (attention.total[0].mean(0) / recorded).tolist()
    return weights


def _state(engine: Engine, prompt: Sequence[int], params: SamplingParams) -> PhaseState:
    """The phase at the beginning of a response."""
    room = engine.context_len - len(prompt)
    if room < 1:
        raise ValueError(f"the prompt has {len(prompt)} tokens; {engine.context_len} fit, one of them for the response")
    return first_phase(engine.rules, room, params)


def _log_softmax(logits: Tensor, params: SamplingParams) -> Tensor:
    return torch.log_softmax(logits / (params.temperature or 1.0), dim=-1)
