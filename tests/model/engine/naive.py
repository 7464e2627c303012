"""Generation as one would write it on a first day: no cache, no batch, masks over the whole vocabulary, fp64 sampling.

It shares no code with the engine but the transformer itself and the order of a request's random numbers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch

from model.checkpoint import LoadedCheckpoint
from model.engine.sequence import SamplingParams
from model.transformer import CausalAttention


@dataclass
class NaiveRun:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)  # how far each choice was from falling differently


@torch.no_grad()
def naive_generate(loaded: LoadedCheckpoint, prompt: list[int], params: SamplingParams, *, context: int) -> NaiveRun:
    """One sequence to its end."""
    vocab, run, rng = loaded.vocab, NaiveRun(), random.Random(params.seed)
    limit = min(context - len(prompt), params.max_new_tokens or context)
    most_images = 10**6 if params.max_images is None else params.max_images
    images, codes = 0, -1  # codes < 0: in text
    text = [i for i in loaded.template.text_legal_ids() if i != vocab.boi_id]
    while len(run.tokens) < limit:
        if codes == vocab.codes_per_image:
            run.tokens.append(vocab.eoi_id)
            run.logprobs.append(0.0)
            run.margins.append(1.0)
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
        choice, margin = _choose(logprobs, params, rng)
        run.tokens.append(columns[choice])
        run.logprobs.append(float(logprobs[choice]))
        run.margins.append(margin)
        if columns[choice] == vocab.eos_id:
            break
        if codes >= 0:
            codes += 1
        elif columns[choice] == vocab.boi_id:
            codes = 0
    return run


def _choose(logprobs: torch.Tensor, params: SamplingParams, rng: random.Random) -> tuple[int, float]:
    if params.temperature == 0:
        best = logprobs.topk(2)
        return int(best.indices[0]), float(best.values[0] - best.values[1])
    probs = logprobs.exp()
    edges = probs.cumsum(-1)
    draws = [rng.random() for _ in range(3)]
    margin = 1.0
    for draw in draws[:2]:
        choice = int((edges <= draw).sum())
        above = float(probs[probs > probs[choice]].sum())
        margin = min(margin, float((edges - draw).abs().min()), abs(above - params.top_p))
        if params.top_p == 1.0 or above < params.top_p:
            return choice, margin
    sorted_probs, order = probs.sort(descending=True, stable=True)
    kept = sorted_probs.cumsum(-1)
    kept = kept[: int((kept < params.top_p).sum()) + 1]
    place = int((kept <= draws[2] * kept[-1]).sum())
    gaps = (kept - draws[2] * kept[-1]).abs()[:-1]
    return int(order[place]), min([margin, *gaps.tolist()])
