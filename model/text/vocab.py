"""The only owner of special token ids: the code range, the code <-> token id map and the image grid.

Everything is read from the checkpoint (``vocabulary_map`` of ``config.json``, ``tokenizer.json``,
``tokenizer_config.json``); no id is hard-coded. ``generation_config.json`` is deliberately ignored: in the released 7B
files it names the wrong BOS token (1 instead of 0).

Terms: a *code* is a codebook index, 0 ... K-1; a *token id* is what the transformer reads and writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from model.config import ConfigError, ModelConfig, read_json

BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
END_IMAGE, BEGIN_IMAGE, IMAGE = "<eoss>", "<racm3:break>", "<image>"
THOUGHT_OPEN, THOUGHT_CLOSE = "<reserved12856>", "<reserved12857>"
ANSWER_OPEN, ANSWER_CLOSE = "<reserved12866>", "<reserved12867>"
TAGS = (THOUGHT_OPEN, THOUGHT_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)

_CODE = re.compile(r"IMGIMG([A-J]+)Z")
_RESERVED = re.compile(r"<(?:reserved\d+|sentinel:\d+)>")
_DIGITS = "ABCDEFGHIJ"


class VocabularyError(ConfigError):
    """Tokenizer and config do not define a usable vocabulary."""


def code_token(code: int) -> str:
    """The name of a code's token: ``IMGIMG``, its decimal digits as letters A-J, ``Z`` (412 -> ``IMGIMGEBCZ``)."""
    return "IMGIMG" + "".join(_DIGITS[int(digit)] for digit in str(code)) + "Z"


def code_of_token(token: str) -> int | None:
    """The code that a token names, or None for any other token."""
    match = _CODE.fullmatch(token)
    return int("".join(str(_DIGITS.index(letter)) for letter in match[1])) if match else None


@dataclass(frozen=True)
class Vocabulary:
    """Token ids of one checkpoint. ``size`` counts embedding rows; ``text_ids`` are the plain BPE tokens."""

    size: int
    bos_id: int
    pad_id: int
    eos_id: int
    boi_id: int
    eoi_id: int
    image_placeholder_id: int
    code_ids: tuple[int, ...]
    grid: tuple[int, int]
    reserved_ids: frozenset[int]
    text_ids: tuple[int, ...]
    thought_open_id: int | None = None
    thought_close_id: int | None = None
    answer_open_id: int | None = None
    answer_close_id: int | None = None
    tokens: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _codes(self) -> dict[int, int]:
        return {token_id: code for code, token_id in enumerate(self.code_ids)}

    @cached_property
    def _names(self) -> dict[int, str]:
        return {token_id: name for name, token_id in self.tokens.items()}

    def name_of(self, token_id: int) -> str:
        """The name of a token; ``#id`` without one."""
        return self._names.get(token_id, f"#{token_id}")

    @property
    def codes_per_image(self) -> int:
        """N, the codes of one image."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens_per_image(self) -> int:
        """N + 2: begin-image, the codes, end-image."""
        return self.codes_per_image + 2

    @property
    def num_codes(self) -> int:
        """K, the size of the codebook."""
        return len(self.code_ids)

    @property
    def has_tags(self) -> bool:
        """Whether the four reserved tags of the *tagged* template exist."""
        return None not in (self.thought_open_id, self.thought_close_id, self.answer_open_id, self.answer_close_id)

    def code_to_id(self, code: int) -> int:
        """Token id of a code.

        Raises:
            ValueError: the code lies outside the codebook.
        """
        if not 0 <= code < len(self.code_ids):
            raise ValueError(f"code {code} is outside the codebook of {len(self.code_ids)}")
        return self.code_ids[code]

    def id_to_code(self, token_id: int) -> int | None:
        """Code of a token id, or None for other tokens."""
        return self._codes.get(token_id)

    def codes_of(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The codes among token ids, in order."""
        return tuple(code for token in token_ids if (code := self._codes.get(token)) is not None)

    def is_code(self, token_id: int) -> bool:
        """Whether a token id is an image code."""
        return token_id in self._codes

    def image_ids(self, codes: Sequence[int]) -> list[int]:
        """begin-image, the N codes as token ids, end-image.

        Raises:
            ValueError: not exactly N codes, or one outside the codebook.
        """
        if len(codes) != self.codes_per_image:
            raise ValueError(f"an image has {self.codes_per_image} codes, got {len(codes)}")
        return [self.boi_id, *(self.code_to_id(code) for code in codes), self.eoi_id]

    def placeholder_ids(self) -> list[int]:
        """An image of unknown codes: begin-image, N placeholders, end-image (for counting)."""
        return [self.boi_id, *[self.image_placeholder_id] * self.codes_per_image, self.eoi_id]

    @classmethod
    def read(cls, folder: str | Path) -> Vocabulary:
        """Read the vocabulary of a checkpoint folder.

        Raises:
            ConfigError: a file is missing or broken.
            VocabularyError: codes or special tokens are missing, or tokenizer and config disagree.
        """
        folder = Path(folder)
        tokenizer = read_json(folder / "tokenizer.json")
        names = folder / "tokenizer_config.json"
        return cls.from_parts(ModelConfig.read(folder), tokenizer, read_json(names) if names.is_file() else {})

    @classmethod
    def from_parts(
        cls, config: ModelConfig, tokenizer: Mapping[str, Any], tokenizer_config: Mapping[str, Any] | None = None
    ) -> Vocabulary:
        """Build from a config and the objects of ``tokenizer.json`` and ``tokenizer_config.json``.

        Raises:
            VocabularyError: codes or special tokens are missing, or tokenizer and config disagree.
        """
        tokens = tokenizer_tokens(tokenizer)
        size = config.transformer.vocab_size
        _check_agreement(tokens, config.vocabulary_map, size)
        known = dict(config.vocabulary_map) | tokens
        named = {role: _token_name((tokenizer_config or {}).get(role)) for role in _ROLES}

        def must(role: str) -> int:
            for name in (named[role], _ROLES[role]):
                if name is not None and name in known:
                    return known[name]
            raise VocabularyError(f"the tokenizer has no {_ROLES[role]!r} ({role})")

        codes = {code: i for token, i in config.vocabulary_map.items() if (code := code_of_token(token)) is not None}
        missing = [code for code in range(config.vq.num_embeddings) if code not in codes]
        if missing or len(codes) != config.vq.num_embeddings:
            what = f"code {missing[0]} has no token" if missing else f"{len(codes)} code tokens"
            raise VocabularyError(f"vocabulary_map does not fit a codebook of {config.vq.num_embeddings}: {what}")
        special = special_ids(tokenizer, known)
        tags = [known.get(tag) for tag in TAGS]
        return cls(
            size=size,
            bos_id=must("bos_token"),
            pad_id=must("pad_token"),
            eos_id=must("eos_token"),
            boi_id=must("boi_token"),
            eoi_id=must("eoi_token"),
            image_placeholder_id=must("image_token"),
            code_ids=tuple(codes[code] for code in range(config.vq.num_embeddings)),
            grid=config.vq.grid,
            reserved_ids=frozenset(special - set(codes.values())),
            text_ids=tuple(sorted(set(tokens.values()) - special)),
            thought_open_id=tags[0],
            thought_close_id=tags[1],
            answer_open_id=tags[2],
            answer_close_id=tags[3],
            tokens=known,
        )


_ROLES = {
    "bos_token": BOS,
    "pad_token": PAD,
    "eos_token": EOS,
    "boi_token": BEGIN_IMAGE,
    "eoi_token": END_IMAGE,
    "image_token": IMAGE,
}


def tokenizer_tokens(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Every token of a ``tokenizer.json`` object with its id, added tokens included.

    Raises:
        VocabularyError: it is not a BPE tokenizer.
    """
    model = tokenizer.get("model") or {}
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise VocabularyError("tokenizer.json has no BPE vocabulary")
    return {str(t): int(i) for t, i in vocab.items()} | {
        a["content"]: int(a["id"]) for a in tokenizer.get("added_tokens") or ()
    }


def special_ids(tokenizer: Mapping[str, Any], tokens: Mapping[str, int]) -> set[int]:
    """Ids that user text and generated text must never contain: added tokens, codes, reserved names."""
    special = {int(a["id"]) for a in tokenizer.get("added_tokens") or ()}
    fixed = {BOS, PAD, EOS, UNK, END_IMAGE, BEGIN_IMAGE, IMAGE}
    return special | {
        i for token, i in tokens.items() if token in fixed or _CODE.fullmatch(token) or _RESERVED.fullmatch(token)
    }


def _token_name(value: Any) -> str | None:
    """A token's text in ``tokenizer_config.json``: a string, or an object with ``content``."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _check_agreement(tokens: Mapping[str, int], vocabulary_map: Mapping[str, int], size: int) -> None:
    for token, token_id in (*tokens.items(), *vocabulary_map.items()):
        if not 0 <= token_id < size:
            raise VocabularyError(f"token {token!r} has id {token_id}, but vocab_size is {size}")
    for token, token_id in vocabulary_map.items():
        if tokens.get(token, token_id) != token_id:
            raise VocabularyError(f"token {token!r} is {tokens[token]} in tokenizer.json and {token_id} in config.json")
    names = {token_id: token for token, token_id in tokens.items()}
    for token, token_id in vocabulary_map.items():  # same special tokens, other words
        other = names.get(token_id, token)
        if token not in tokens and other not in vocabulary_map and not _RESERVED.fullmatch(token):
            raise VocabularyError(
                f"id {token_id} is {other!r} in tokenizer.json and {token!r} in config.json: "
                "the tokenizer belongs to another checkpoint"
            )
