"""A naive generation loop: no cache, no batch, masks over the whole vocabulary, fp64 sampling.

It only shares the transformer and the order of a request's random numbers with the engine.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.engine.sequence import SamplingParams
from model.nets.transformer import CausalAttention
from tests.near_ties import choose


@dataclass
class NaiveRun:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)


@torch.no_grad()
def naive_generate(loaded: LoadedCheckpoint, prompt: list[int], params: SamplingParams, *, context: int) -> NaiveRun:
    """Generate one sequence to its end."""
    vocab, run, rng = loaded.vocab, NaiveRun(), random.Random(params.seed)
    limit = min(context - len(prompt), params.max_new_tokens or context)
    most_images = 10**6 if params.max_images is None else params.max_images
    images, codes = 0, -1  # codes < 0: in text
    text = [i for i in loaded.template.text_legal_ids() if i != vocab.boi_id]
    while len(run.tokens) < limit:
        if codes == vocab.codes_per_image:
            run.tokens.append(vocab.eoi_id)
            run.logprobs.append(0.0)
            images, codes = images + 1, -1
            continue
        columns = list(vocab.code_ids)
        if codes < 0:
            room = limit - len(run.tokens) >= vocab.codes_per_image + 2 + 32
            columns = [*text, vocab.boi_id] if room and images < most_images else text
        ids = torch.tensor([prompt + run.tokens])
        hidden = loaded.transformer(ids, torch.arange(ids.shape[1])[None], CausalAttention())[0, -1]
        logits = loaded.transformer.logits(hidden)[columns].double()
        if params.temperature > 0:
            logits /= params.temperature
        logprobs = torch.log_softmax(logits, -1)
        choice, _ = choose(logprobs, params, rng)
        run.tokens.append(columns[choice])
        run.logprobs.append(float(logprobs[choice]))
        if columns[choice] == vocab.eos_id:
            break
        if codes >= 0:
            codes += 1
        elif columns[choice] == vocab.boi_id:
            codes = 0
    return run
