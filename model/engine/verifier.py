"""How well a drawing shows what its step says, from the model itself.

A base that was trained to name what was done between two images (`training/world/drills.py`) is a verifier: it gives a
step's order a higher log-probability, the better a candidate fits it. After the Generative Universal Verifier
(arXiv 2510.13804). One packed forward pass for all candidates of a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.nets.transformer import PackedAttention, PackedLayout, Transformer
from model.text.template import ImagePart, Part, Template, TextPart

Codes = tuple[int, ...]


@torch.inference_mode()
def order_logprobs(
    transformer: Transformer,
    template: Template,
    question: str,
    before: Codes,
    after: Sequence[Codes],
    orders: Sequence[str],
) -> list[float]:
    """log p(order | before, after, question) in nats, summed over the order's tokens, for each pair of after and order.

    Args:
        transformer: of the checkpoint.
        template: of the checkpoint.
        question: what the checkpoint was trained to answer (`verifier` of its manifest).
        before: codes of the image that the step starts from.
        after: codes of each candidate.
        orders: the order that each candidate is judged by, as an instruction.

    Raises:
        ValueError: not as many orders as candidates.
    """
    if not after:
        return []
    ids: list[int] = []
    lengths: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    for candidate, order in zip(after, orders, strict=True):
        asked: list[Part] = [ImagePart(before), ImagePart(candidate), TextPart(question)]
        whole = template.render_parts(asked, [TextPart(order)])
        start = len(ids)
        places = [i for i, learnt in enumerate(whole.loss_mask) if learnt]
        ids += whole.ids
        lengths.append(len(whole.ids))
        predictors += [start + i - 1 for i in places]
        targets += [whole.ids[i] for i in places]
        counts.append(len(places))
    device = transformer.device
    layout = PackedLayout.from_lengths(lengths, device)
    hidden = transformer(torch.tensor(ids, device=device), layout.positions, PackedAttention(layout))
    logits = transformer.logits(hidden[torch.tensor(predictors, device=device)]).float()
    wanted = torch.tensor(targets, device=device)
    logprobs = torch.log_softmax(logits, dim=-1).gather(1, wanted[:, None])[:, 0].double().cpu()
    return [float(part.sum()) for part in logprobs.split(counts)]
