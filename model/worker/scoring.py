"""Questions about a finished response, answered by forward passes outside the step loop."""

from __future__ import annotations

from model.engine.messages import Alternative, AlternativesQuery, EngineError
from model.worker.models import Models


def alternatives(models: Models, query: AlternativesQuery) -> list[Alternative]:
    """The likeliest legal tokens after a beginning of a response.

    Raises:
        EngineError: the weights are not loaded any more.
        ValueError: the tokens do not fit.
    """
    model = models.find(query.checkpoint, query.weight_version)
    if model is None:
        gone = f"version {query.weight_version} of {query.checkpoint} is not loaded any more"
        raise EngineError("weights_gone", gone)
    prompt = model.loaded.template.prompt_ids(query.question, model.see(query.images) if query.images else [])
    found = model.engine.likeliest(prompt, query.tokens, query.sampling, query.count)
    return [Alternative(token, logprob) for token, logprob in found]
