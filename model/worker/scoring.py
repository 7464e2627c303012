"""Questions about the tokens of a response, answered by forward passes outside the step loop."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from model.engine import commands
from model.engine.analysis import attention_to, likeliest, token_logprobs
from model.engine.messages import (
    Alternative,
    AlternativesQuery,
    EngineError,
    ImageAttention,
    ImageReliance,
    Reliance,
    WholeResponse,
)
from model.text.vocab import Vocabulary
from model.worker.models import Model, Models


def scored(models: Models, command: commands.Asked) -> list[Alternative] | Reliance | tuple[ImageAttention, ...]:
    """The reply to a command.

    Raises:
        EngineError: the weights are not loaded any more, or the response has no answer.
        ValueError: the tokens do not fit.
    """
    match command:
        case commands.Alternatives(query):
            return alternatives(_model(models, query), query)
        case commands.MeasureReliance(response):
            return reliance(_model(models, response), response)
        case commands.MeasureAttention(response, step):
            return attention(_model(models, response), response, step)


def alternatives(model: Model, query: AlternativesQuery) -> list[Alternative]:
    """The likeliest legal tokens after a beginning of a response."""
    found = likeliest(model.engine, _prompt(model, query), query.tokens, query.sampling, query.count)
    return [Alternative(token, logprob) for token, logprob in found]


def reliance(model: Model, response: WholeResponse) -> Reliance:
    """How much the answer and every step rely on each image: what hiding it from later tokens costs."""
    prompt, tokens = _prompt(model, response), _tokens(response)
    steps, answer = _parts(response), model.loaded.template.answer_tokens(tokens)
    if not answer:
        raise EngineError("no_answer", "the response has no answer")

    def logprobs(hidden: range) -> tuple[float, list[float]]:
        each = token_logprobs(model.engine, prompt, tokens, response.sampling, hidden=hidden)
        return sum(each[answer.start : answer.stop]), [sum(each[part.start : part.stop]) for part in steps]

    whole, whole_steps = logprobs(range(0))
    images = []
    for step, place in images_of(model.loaded.vocab, prompt, tokens, steps):
        without, without_steps = logprobs(place)
        per_step = tuple(a - b for a, b in zip(whole_steps, without_steps, strict=True))
        images.append(ImageReliance(step, whole - without, per_step))
    return Reliance(whole, tuple(images))


def attention(model: Model, response: WholeResponse, step: int | None) -> tuple[ImageAttention, ...]:
    """How much the tokens of a step or of the answer (None) attend to each image up to them.

    A token is chosen by the position before it, so the weights are those of that position.
    """
    prompt, tokens, vocab = _prompt(model, response), _tokens(response), model.loaded.vocab
    steps = _parts(response)
    part = model.loaded.template.answer_tokens(tokens) if step is None else steps[step - 1]
    if not part:
        raise EngineError("no_answer", "the response has no answer")
    rows = [len(prompt) + i - 1 for i in part]
    weights = attention_to(model.engine, [*prompt, *tokens], rows)
    width = vocab.grid[1]
    return tuple(
        ImageAttention(number, tuple(tuple(weights[i : i + width]) for i in place[::width]))
        for number, place in images_of(vocab, prompt, tokens, steps)
        if place.start <= rows[-1]
    )


def images_of(
    vocab: Vocabulary, prompt: Sequence[int], response: Sequence[int], steps: Sequence[range]
) -> list[tuple[int, range]]:
    """Each complete image of a prompt and of a response's steps: its step (0: the prompt's), and where its codes stand.

    Positions count from the beginning of the prompt.
    """
    ids, found = [*prompt, *response], []
    ends = [len(prompt) + part.stop for part in steps]
    for start in (i + 1 for i, token in enumerate(ids) if token == vocab.boi_id):
        place = range(start, start + vocab.codes_per_image)
        if place.stop > len(ids) or not all(vocab.is_code(ids[i]) for i in place):
            continue
        step = 0 if start < len(prompt) else next((k for k, end in enumerate(ends, 1) if start < end), None)
        if step is not None:
            found.append((step, place))
    return found


def _model(models: Models, query: AlternativesQuery | WholeResponse) -> Model:
    model = models.find(query.checkpoint, query.weight_version)
    if model is None:
        gone = f"version {query.weight_version} of {query.checkpoint} is not loaded any more"
        raise EngineError("weights_gone", gone)
    return model


def _prompt(model: Model, query: AlternativesQuery | WholeResponse) -> list[int]:
    return model.loaded.template.prompt_ids(query.question, model.see(query.images) if query.images else [])


def _tokens(response: WholeResponse) -> list[int]:
    return [token for step in response.steps for token in step] + list(response.last)


def _parts(response: WholeResponse) -> list[range]:
    """Where the tokens of each step stand in the response."""
    ends = list(accumulate(len(step) for step in response.steps))
    return [range(end - len(step), end) for step, end in zip(response.steps, ends, strict=True)]
