"""How well a drawing shows what its step says, from a model.

A base that was trained to name what was done between two images (`training/world/drills.py`) is a verifier: it gives a
step's order a higher log-probability, the better a candidate fits it. After the Generative Universal Verifier
(arXiv 2510.13804). One packed forward pass for all candidates of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.engine.engine import Engine
from model.engine.phases import Legal
from model.engine.sequence import Judge
from model.nets.attention import PackedLayout
from model.text.instructions import as_instruction
from model.text.template import ImagePart, Part, Template, TextPart

Codes = tuple[int, ...]


@torch.inference_mode()
def order_logprobs(
    engine: Engine,
    template: Template,
    question: str,
    before: Codes,
    after: Sequence[Codes],
    orders: Sequence[str],
) -> list[float]:
    """log p(order | before, after, question) in nats, summed over the order's tokens, for each pair of after and order.

    The probabilities are those of sampling, over the tokens that are legal in text.

    Args:
        engine: with the weights of the checkpoint.
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
    column = {token: number for number, token in enumerate(engine.ids_of(Legal.TEXT))}
    for candidate, order in zip(after, orders, strict=True):
        asked: list[Part] = [ImagePart(before), ImagePart(candidate), TextPart(question)]
        whole = template.render_parts(asked, [TextPart(order)])
        start = len(ids)
        places = [i for i, learnt in enumerate(whole.loss_mask) if learnt]
        ids += whole.ids
        lengths.append(len(whole.ids))
        predictors += [start + i - 1 for i in places]
        targets += [column[whole.ids[i]] for i in places]
        counts.append(len(places))
    layout = PackedLayout.from_lengths(lengths, engine.device)
    hidden = engine.forward_packed(ids, layout)
    logits = engine.logits(hidden[torch.tensor(predictors, device=engine.device)], Legal.TEXT)
    wanted = torch.tensor(targets, device=engine.device)
    logprobs = torch.log_softmax(logits, dim=-1).gather(1, wanted[:, None])[:, 0].double().cpu()
    return [float(part.sum()) for part in logprobs.split(counts)]


@dataclass(frozen=True, slots=True)
class OrderVerifier:
    """Scores candidates by log p(order | previous image, candidate) of a checkpoint, often not the drawing one.

    Attributes:
        engine: with the weights of the judging checkpoint.
        template: of the judging checkpoint.
        question: `verifier` of its manifest.
        drawer: template of the drawing checkpoint; both have the same tokens and codebook.
    """

    engine: Engine
    template: Template
    question: str
    drawer: Template

    def __post_init__(self) -> None:
        if not self.question:
            raise ValueError("the judging checkpoint is no verifier: its manifest names no question")
        if self.template.vocab != self.drawer.vocab:
            raise ValueError("the judging checkpoint has other tokens than the drawing one")

    def about(self, prompt: Sequence[int], response: Sequence[int]) -> Judge | None:
        """Judge by the text of the step that the response is in; None without a text, or without an image before."""
        parser = self.drawer.parser()
        for token in response:
            parser.feed(token)
        text = parser.steps[-1][0] if parser.steps else ""
        images = [codes for _, codes in parser.steps if codes is not None] or _images(self.drawer, prompt)
        if not text or not images:
            return None
        order, before, vocab = as_instruction(text), images[-1], self.drawer.vocab

        def judge(candidates: Sequence[Sequence[int]]) -> list[float]:
            after = [vocab.codes_of(candidate) for candidate in candidates]
            return order_logprobs(self.engine, self.template, self.question, before, after, [order] * len(after))

        return judge


def _images(template: Template, ids: Sequence[int]) -> list[Codes]:
    """Codes of the images in a prompt."""
    vocab = template.vocab
    starts = [i + 1 for i, token in enumerate(ids) if token == vocab.boi_id]
    found = [vocab.codes_of(ids[start : start + vocab.codes_per_image]) for start in starts]
    return [codes for codes in found if len(codes) == vocab.codes_per_image]
