"""Text <-> token ids: byte-level BPE that never encodes user text as special tokens, and a streaming detokeniser.

Uses the ``tokenizers`` library only (transformers is never imported on the serving path). Knows no templates or images:
special ids come from :mod:`model.text.vocab`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from model.config import read_json
from model.text.vocab import (
    BEGIN_IMAGE,
    BOS,
    END_IMAGE,
    EOS,
    IMAGE,
    PAD,
    TAGS,
    UNK,
    VocabularyError,
    code_token,
    special_ids,
    tokenizer_tokens,
)

# The marks of the plain template stay whole so that each can become one token; digits are single; the rest follows
# GPT-2.
_SPLIT = r"\n?(?:THOUGHT [0-9]:|Final Answer:)|[0-9]| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\p{N}|\s+(?!\S)|\s+"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_MAX_STEPS_IN_ONE_TOKEN = 6


class TextTokenizer:
    """Plain text to ids and back for one checkpoint; special ids never occur in either direction."""

    def __init__(self, folder: str | Path) -> None:
        """Read ``tokenizer.json``.

        Raises:
            ConfigError: the file is missing or broken, or a merge could build a special token.
        """
        self._setup(read_json(Path(folder) / "tokenizer.json"))

    @classmethod
    def from_object(cls, data: Mapping[str, Any]) -> TextTokenizer:
        """Build from a ``tokenizer.json`` object."""
        new = cls.__new__(cls)
        new._setup(data)
        return new

    def _setup(self, data: Mapping[str, Any]) -> None:
        self._tokens = tokenizer_tokens(data)
        self._special = frozenset(special_ids(data, self._tokens))
        _check_merges(data, self._tokens, self._special)
        # Without added tokens the library reads "<image>" in a question as plain text, whatever its flags; without
        # truncation, padding and post-processor it adds nothing.
        off: dict[str, Any] = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        model = dict(data["model"])
        if model.get("unk_token") is not None and not model.get("byte_fallback"):
            model["unk_token"] = None  # an unknown character is dropped instead of encoded as a special id
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps({**data, "model": model, **off}))
        except Exception as error:  # the library raises bare Exception
            raise VocabularyError(f"tokenizer.json is not usable: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Encode literal text: never a special id; lone surrogates become U+FFFD, every other character is kept."""
        ids: list[int] = self._tokenizer.encode(clean_text(text), add_special_tokens=False).ids
        return ids if self._special.isdisjoint(ids) else [i for i in ids if i not in self._special]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids; special ids are skipped, broken UTF-8 becomes U+FFFD."""
        stream = self.detokenizer()
        return "".join([stream.push(token_id) for token_id in ids]) + stream.flush()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token; empty for special and unknown ids."""
        return self._bytes.get(token_id, b"")

    def detokenizer(self) -> IncrementalDetokenizer:
        """Create a detokeniser for one stream of text."""
        return IncrementalDetokenizer(self)

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        alphabet = _byte_alphabet()
        byte_level = "ByteLevel" in json.dumps(json.loads(self._tokenizer.to_str()).get("decoder"))
        return {
            token_id: _token_bytes(token, alphabet if byte_level else None)
            for token, token_id in self._tokens.items()
            if token_id not in self._special
        }


class IncrementalDetokenizer:
    """Ids in, text out, one token at a time; incomplete UTF-8 waits for the next token."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the characters that this token completes ("" for incomplete ones and special ids)."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """End the text: an incomplete character becomes U+FFFD; the detokeniser is reset."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def clean_text(text: str) -> str:
    """Make text encodable as UTF-8: surrogate pairs are joined, lone surrogates replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def train_bpe(texts: Iterable[str], num_codes: int, text_vocab: int = 1024) -> Tokenizer:
    """Train the nano family's tokenizer: the 7B's order of ids, then byte-level BPE.

    Ids: BOS 0, PAD 1, EOS 2, UNK 3, the codes ``IMGIMG...Z``, end-image, begin-image, ``<image>``, the four reserved
    tags, then ``text_vocab`` text tokens (including the 256 bytes, so every text can be encoded). The marks of the
    plain template (``THOUGHT k:`` for small k, ``Final Answer:``) are weighted so that each becomes one token.

    Args:
        texts: training corpus; the result depends on nothing else.
        num_codes: size of the codebook.
        text_vocab: number of text tokens, at least 256; fewer if the texts have no further pairs.
    """
    if text_vocab < 256:
        raise ValueError("text_vocab must be at least 256, one token for each byte")
    texts = list(texts)
    special = [BOS, PAD, EOS, UNK, *map(code_token, range(num_codes)), END_IMAGE, BEGIN_IMAGE, IMAGE, *TAGS]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + text_vocab,
        special_tokens=special,
        initial_alphabet=sorted(_byte_alphabet()),
        show_progress=False,
    )
    marks = [f"THOUGHT {k}:" for k in range(1, _MAX_STEPS_IN_ONE_TOKEN + 1)] + ["\nFinal Answer:"]
    weighted = [mark for mark in marks for _ in range(max(1000, len(texts)))]
    tokenizer.train_from_iterator([*map(clean_text, texts), *weighted], trainer=trainer)
    return tokenizer


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in shown}
    hidden = [b for b in range(256) if b not in set(shown)]
    return table | {chr(256 + n): b for n, b in enumerate(hidden)}


def _token_bytes(token: str, alphabet: Mapping[str, int] | None) -> bytes:
    if alphabet is not None and all(letter in alphabet for letter in token):
        return bytes(alphabet[letter] for letter in token)
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace("\u2581", " ").encode("utf-8", "replace")


def _check_merges(data: Mapping[str, Any], tokens: Mapping[str, int], special: frozenset[int]) -> None:
    """Reject merges that build a special token: user text could forge it."""
    merges: Sequence[Any] = data["model"].get("merges") or ()
    for merge in merges:
        pair = merge.split(" ", 1) if isinstance(merge, str) else merge
        if tokens.get("".join(pair)) in special:
            raise VocabularyError(f"tokenizer.json: text can be merged into the special token {''.join(pair)!r}")
