"""Whether a question is like those of a checkpoint's training, as far as its card says.

The card (key ``questions`` of ``manifest.json``) lists for each word the words that followed it in training:
``{"follows": {"what": "colour shape", …}}``, with ``^`` as the beginning of a question and ``$`` as its end. A question
is familiar if each of its words followed the one before it in some question of the training. Case and punctuation do
not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

KEY = "questions"
BEGIN, END = "^", "$"  # no words
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_PLACE = re.compile(r"<image_\d+>")


def words(question: str) -> list[str]:
    """The words of a question, without places of images."""
    return _WORD.findall(_PLACE.sub(" ", question).casefold())


def card(questions: Iterable[str]) -> dict[str, Any]:
    """What a card says about these questions."""
    follows: dict[str, set[str]] = {}
    for question in questions:
        for word, following in pairwise((BEGIN, *words(question), END)):
            follows.setdefault(word, set()).add(following)
    return {"follows": {word: " ".join(sorted(follows[word])) for word in sorted(follows)}}


def is_familiar(question: str, extra: Mapping[str, Any]) -> bool | None:
    """Whether the question is like those of the training; None if the manifest's ``extra`` does not say."""
    found = extra.get(KEY)
    follows = found.get("follows") if isinstance(found, Mapping) else None
    if not isinstance(follows, Mapping) or not all(isinstance(after, str) for after in follows.values()):
        return None
    asked = words(question)
    chain = pairwise((BEGIN, *asked, END))
    return bool(asked) and all(following in follows.get(word, "").split() for word, following in chain)
