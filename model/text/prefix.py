"""The given beginning of a response, as token ids: the steps that a branch keeps, and what it makes follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.text.template import StepPart, Template


@dataclass(frozen=True)
class GivenStep:
    """One step: its exact ``tokens``, or text and codes (None: no image)."""

    text: str = ""
    codes: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None


@dataclass(frozen=True)
class GivenIds:
    """Token ids of each step, and of what follows them."""

    steps: list[list[int]]
    then: list[int]

    @property
    def all(self) -> list[int]:
        """The whole prefix."""
        return [token for step in self.steps for token in step] + self.then


def given_ids(
    template: Template,
    steps: Sequence[GivenStep],
    *,
    then_tokens: Sequence[int] = (),
    then_text: str | None = None,
    then_answer: bool = False,
) -> GivenIds:
    """Render a prefix. Exact tokens stay as they are; the rest is rendered as the template renders a trace.

    ``then_text`` opens the next step, ``then_answer`` the answer, ``then_tokens`` follow as they are. A last step that
    was rendered without an image is closed by the next step's mark, so that the model cannot go on writing it.
    """
    ids: list[list[int]] = []
    after_text = False
    for number, step in enumerate(steps, 1):
        if step.tokens is not None:
            ids.append(list(step.tokens))
            after_text = step.tokens[-1:] != (template.vocab.eoi_id,)
            continue
        opening = template.opening_ids() if number == 1 else []
        ids.append(opening + template.step_ids(StepPart(step.text, step.codes), number, after_text=after_text))
        after_text = step.codes is None
    then = list(then_tokens)
    if after_text and steps[-1].tokens is None and not (then or then_answer):
        then_text = then_text or ""
    if not ids and (then_text is not None or then_answer):
        then += template.opening_ids()
    if then_text is not None:
        then += template.step_ids(StepPart(then_text), len(ids) + 1, after_text=after_text)
    if then_answer:
        then += template.answer_mark_ids()
    return GivenIds(ids, then)
