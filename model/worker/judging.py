"""Which loaded model judges the candidates of a request, and how its choice is reported."""

from __future__ import annotations

import torch

from model.engine.messages import EngineError
from model.engine.sequence import Chosen, SamplingParams
from model.engine.verifier import OrderVerifier
from model.worker.models import Models
from model.worker.narrator import ImageJob
from model.worker.requests import Live


def verifier_of(models: Models, live: Live, params: SamplingParams) -> OrderVerifier | None:
    """What chooses among a request's candidates, whose model the request then holds; None without candidates.

    Raises:
        EngineError: ``no_verifier``: it is not loaded, no verifier, or has other tokens or another codebook.
    """
    if params.candidates == 1:
        return None
    name, model = live.request.verifier, live.model
    judge = models.find(name)
    if judge is None or model is None:
        raise EngineError("no_verifier", f"the verifier {name!r} is not loaded")
    mine, other = model.loaded.vq, judge.loaded.vq
    if mine is None or other is None or not torch.equal(mine.codebook, other.codebook):
        raise EngineError("no_verifier", f"{name} has another codebook than {model.name}")
    try:
        verifier = OrderVerifier(
            judge.engine, judge.loaded.template, judge.loaded.manifest.verifier, model.loaded.template
        )
    except ValueError as error:
        raise EngineError("no_verifier", str(error)) from None
    live.judge = judge
    return verifier


def candidate_images(live: Live, chosen: Chosen) -> list[ImageJob]:
    """Report the candidates of the image that a request has just drawn; returns the images to decode."""
    assert live.model is not None
    assert live.narrator is not None
    images = [live.model.loaded.vocab.codes_of(candidate) for candidate in chosen.candidates]
    return live.narrator.candidates(images, chosen.scores, chosen.index)
