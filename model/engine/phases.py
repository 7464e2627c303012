"""Which tokens one sequence may write next: TEXT, IMAGE or DONE. Legal by construction, whatever the logits are.

Begin-image is followed by exactly N codes and a forced end-image; it is legal only while an image and an answer still
fit. Knows token ids, no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Literal, Protocol

from model.text.vocab import Vocabulary

ANSWER_ROOM = 32  # tokens reserved after an image for the answer (method.md, section 3)

FinishReason = Literal["stop", "length"]


class Phase(Enum):
    """What a sequence draws next."""

    TEXT = "text"
    IMAGE = "image"
    DONE = "done"


class Legal(IntEnum):
    """The legal set of a position; kept with every response token as one byte."""

    FORCED = 0
    TEXT = 1
    TEXT_OR_IMAGE = 2
    CODE = 3


class LegalText(Protocol):
    """The part of a template that the phases need: the ids that may be sampled as text, except begin-image."""

    def text_legal_ids(self) -> list[int]:
        """The token ids that may be sampled as text."""
        ...


@dataclass(frozen=True, slots=True)
class LegalIds:
    """The ids a position may be sampled from; sampling and training must use the same.

    Attributes:
        text: for TEXT_OR_IMAGE; begin-image is the last one, and TEXT is all but the last.
        codes: for CODE, in the order of the codebook.
    """

    text: tuple[int, ...]
    codes: tuple[int, ...]

    @classmethod
    def of(cls, template: LegalText, vocab: Vocabulary) -> LegalIds:
        """The legal ids of a checkpoint."""
        text = (*(i for i in template.text_legal_ids() if i != vocab.boi_id), vocab.boi_id)
        return cls(text, tuple(vocab.code_ids))


@dataclass(frozen=True, slots=True)
class PhaseRules:
    """The part of the vocabulary that the phases need: N = `codes_per_image`."""

    boi_id: int
    eoi_id: int
    eos_id: int
    codes_per_image: int

    @property
    def image_room(self) -> int:
        """Number of tokens that must be left for begin-image to be legal."""
        return self.codes_per_image + 2 + ANSWER_ROOM

    def images_that_fit(self, tokens: int) -> int:
        """Images that fit into a response of `tokens`."""
        return images_that_fit(tokens, self.codes_per_image + 2)


def images_that_fit(tokens: int, tokens_per_image: int) -> int:
    """Images that fit into a response of `tokens`, with room for an answer."""
    return max(0, (tokens - ANSWER_ROOM) // tokens_per_image)


class PhaseState:
    """The phase of one sequence. `legal` is the legal set of the next token, `push` records the token."""

    __slots__ = (
        "codes_done",
        "finish_reason",
        "images_done",
        "legal",
        "max_images",
        "max_tokens",
        "num_tokens",
        "phase",
        "rules",
    )

    def __init__(self, rules: PhaseRules, *, max_tokens: int, max_images: int) -> None:
        """`max_tokens` counts the whole response; both limits apply from its first token."""
        if max_tokens < 1 or max_images < 0:
            raise ValueError(f"max_tokens {max_tokens} must be at least 1 and max_images {max_images} at least 0")
        self.rules = rules
        self.max_tokens, self.max_images = max_tokens, max_images
        self.phase = Phase.TEXT
        self.num_tokens = self.images_done = self.codes_done = 0
        self.finish_reason: FinishReason | None = None
        self.legal = self._text()

    @property
    def forced_id(self) -> int:
        """The token of a FORCED position: always end-image."""
        return self.rules.eoi_id

    def push(self, token_id: int) -> None:
        """Record the next token, which must be legal."""
        self.num_tokens += 1
        if self.phase is Phase.IMAGE:
            if self.legal is Legal.FORCED:
                self.phase, self.codes_done = Phase.TEXT, 0
                self.images_done += 1
                self.legal = self._text()
            else:
                self.codes_done += 1
                if self.codes_done == self.rules.codes_per_image:
                    self.legal = Legal.FORCED
        elif token_id == self.rules.boi_id:
            self.phase, self.codes_done, self.legal = Phase.IMAGE, 0, Legal.CODE
        elif token_id == self.rules.eos_id:
            self._finish("stop")
        elif self.legal is Legal.TEXT_OR_IMAGE:
            self.legal = self._text()
        if self.num_tokens >= self.max_tokens and self.phase is not Phase.DONE:
            self._finish("length")

    def _finish(self, reason: FinishReason) -> None:
        self.phase, self.finish_reason, self.legal = Phase.DONE, reason, Legal.FORCED

    def _text(self) -> Legal:
        room = self.max_tokens - self.num_tokens >= self.rules.image_room
        return Legal.TEXT_OR_IMAGE if room and self.images_done < self.max_images else Legal.TEXT
