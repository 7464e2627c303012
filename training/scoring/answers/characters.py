"""One spelling for characters that look alike: widths, digits, minus signs, spaces, quotes, fractions, superscripts.

Case, words and layout are kept; :mod:`training.scoring.answers.undress` removes markup. Linear in the length of the
text.
"""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPTS = {ord(char): plain for char, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿˣ", "0123456789+-=()nx", strict=True)}
_SUPERSCRIPT_RUN = re.compile(f"[{''.join(map(chr, _SUPERSCRIPTS))}]+")
_SAME = str.maketrans(
    {
        **dict.fromkeys("‐‑‒–—―−﹘﹣－➖", "-"),
        **dict.fromkeys("‘’‚‛′´ʹʼ＇", "'"),
        **dict.fromkeys("“”„‟″«»＂", '"'),
        **dict.fromkeys("º˚∘", "°"),
        **dict.fromkeys("⋅∙•‧・", "·"),
        **dict.fromkeys("✕✖⨯╳", "×"),
        **dict.fromkeys("∶：", ":"),
        **dict.fromkeys("∕⁄", "/"),
        **dict.fromkeys("，、", ", "),
        **dict.fromkeys("⟨〈", "⟨"),
        **dict.fromkeys("⟩〉", "⟩"),
        **dict.fromkeys("【［", "["),
        **dict.fromkeys("】］", "]"),
        **dict.fromkeys("「」『』", '"'),
        "。": ".",
        "；": ";",
        "٪": "%",
        "٫": ".",
        "٬": ",",
        "⩽": "≤",
        "⩾": "≥",
        "∗": "*",
    }
)
_INVISIBLE = frozenset({"Cf", "Cc", "Cs", "Co", "Cn"})


def canonical(text: str) -> str:
    """The text in one spelling: NFKC, ASCII digits, ``-`` for every minus, plain blanks, no invisible characters.

    ``½`` becomes ``1/2`` (``1½`` becomes ``1 1/2``), ``²`` becomes ``^{2}``; lines are kept.

        canonical("１½ × 10⁻³")  # "1 1/2 × 10^{-3}"
    """
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    if not text.isascii():
        text = _SUPERSCRIPT_RUN.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text.translate(_SAME))
        text = _digits_and_fractions(text)
        text = unicodedata.normalize("NFKC", text).translate(_SAME)
    return "".join(char if char == "\n" or not _is_odd(char) else " " if char.isspace() else "" for char in text)


def _is_odd(char: str) -> bool:
    if char.isascii():
        return not char.isprintable()
    return char.isspace() or unicodedata.category(char) in _INVISIBLE


def _digits_and_fractions(text: str) -> str:
    out: list[str] = []
    for char in text:
        if char.isascii():
            out.append(char)
        elif (digit := unicodedata.decimal(char, None)) is not None:
            out.append(str(digit))
        elif unicodedata.decomposition(char).startswith("<fraction>"):
            fraction = unicodedata.normalize("NFKC", char).replace("⁄", "/")
            out.append(f" {fraction}" if out and out[-1][-1:].isdigit() else fraction)
        else:
            out.append(char)
    return "".join(out)
