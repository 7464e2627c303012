"""Extracts the answer from a free text, without markup: LaTeX, Markdown, quotes, lead phrases, closing punctuation."""

from __future__ import annotations

import re
from functools import lru_cache

from training.scoring.answers.characters import canonical

MAX_CHARS = 20_000  # of a longer text only the beginning and the end are used
MAX_LINE = 2_000  # a longer line is only compared literally
_HEAD = 2_000

_NAME = r"(?:final\s+answer|(?:correct|right|best|final)\s+(?:answer|option|choice|result)|answer|ans)"
_VERB = r"(?:is|are|was|would\s+be|must\s+be|should\s+be|equals)\b(?:\s+(?:that|therefore|thus|clearly|simply)\b)?"
_MARK = re.compile(
    rf"\b{_NAME}\b[*_`\"')\]]{{0,4}}\s{{0,3}}(?:{_VERB}\s{{0,3}}:?|[:=])[*_`\s]{{0,4}}|####\s|<answer>", re.I
)
_HEADING = re.compile(r"^[#*_ \t]{0,8}(?:final\s+)?answer[*_: \t]{0,8}\n", re.IGNORECASE | re.MULTILINE)
_TAGS = re.compile(r"</?answer>.*|<\|[a-z_]{1,20}\|>", re.IGNORECASE | re.DOTALL)
_LEAD = re.compile(
    r"(?:so|thus|therefore|hence|then|ok|okay|well|sure|finally)\b[,:]?\s+(?=\S)"
    r"|(?:it\s+is|it's|it\s+was|they\s+are|there\s+(?:is|are|was|were)|that\s+is|this\s+is|these\s+are)\s+(?=\S)"
    r"|(?:equals?|is)\s+(?=[-+$€£\d\\])"
    r"|(?:i(?:'d|\s+would)?\s+(?:think|believe|guess|say|choose|pick|go\s+with)|we\s+(?:get|have|find|obtain))"
    r"(?:\s+that)?(?:\s+(?:it\s+is|it's))?:?\s+(?=\S)"
    r"|(?:about|approximately|approx\.?|around|roughly|exactly|only|just|a\s+total\s+of|equal\s+to)\s+(?=\S)"
    r"|[≈=~]\s*(?=\S)",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"(?:the|its|their|his|her|this|that)\s+[^\W\d][^\d.,;:=?!]{0,60}?\s(?:is|are|was|were|equals)\s+(?=\S)", re.I
)
_DENIED = re.compile(
    r"\b(?:not?|never|none|neither|nor|nothing|nobody|false|wrong|incorrect|cannot|without)\b|n't\b", re.I
)
_PRAISED = re.compile(
    r"\s(?:is|was)\s(?:the\s)?(?:correct|right|answer)(?:\s(?:answer|option|choice|one))?$", re.IGNORECASE
)
_REASON = re.compile(
    r",?\s+(?:because|since|as\s+shown|which\s+means)\b|;\s|(?<=[^\W_]{3})[.!?]\s|(?<=\d)[.!?]\s(?=[A-Z])"
)
_SECOND_THOUGHT = re.compile(r"(?:or|wait|actually|alternatively|correction)\b", re.IGNORECASE)
_HEDGE = re.compile(r"\b(?:or|wait|actually|but|maybe|perhaps|alternatively|however|no|not)\b", re.IGNORECASE)
_PAIRS = (
    ("**", "**"),
    ("__", "__"),
    ('"', '"'),
    ("'", "'"),
    ("`", "`"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("*", "*"),
    ("_", "_"),
)
_DOLLARS = re.compile(r"\$\$([^$]{1,500})\$\$|(?<![\w$])\$([^$]{1,500})\$(?!\d)")

_IS = re.compile(r"^([a-zA-Z])\s+(?:is|equals)\s+(?=[-+√π(\d])")
_BY = re.compile(r"(?<=\d) x (?=\d)")
_INFINITY = re.compile(r"(?<![a-z])(?:inf|infinity)(?![a-z])", re.IGNORECASE)
_NEGATIVE_INFINITY = re.compile(r"\b(?:minus|negative) ∞", re.IGNORECASE)

_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|operatorname|mbox|boldsymbol|emph|underline|ce|boxed|fbox)"
    r"\s*\{([^{}]*)\}"
)
_BRACED = re.compile(
    r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))"
    r"|\\sqrt\s*\[([^\[\]{}]*)\]\s*\{([^{}]*)\}|\\sqrt\s*\{([^{}]*)\}|\\sqrt\s*(\w)"
    r"|\^\s*\{([^{}]*)\}|_\s*\{([^{}]*)\}"
)
_SPACING = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-zA-Z])\.?|\\!")
_BLANKS = re.compile(r"\\[,;: ]|\\(?:quad|qquad|space)(?![a-zA-Z])|(?<!\w)~(?!\w)")
_DEGREE = re.compile(r"\^\s*\(?\{?\s*(?:\\circ|\\degree|°)\s*\}?\)?|\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])")
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_SIMPLE_FRACTION = re.compile(r"([+-]?)\s*(?:(\d+)\s*)?\(\(\s*(\d+)\s*\)/\(\s*(\d+)\s*\)\)(?!\s*[\^!(/*\d])")
_SYMBOLS = {
    "times": "×",
    "cdot": "·",
    "div": "/",
    "pi": "π",
    "infty": "∞",
    "le": "≤",
    "leq": "≤",
    "leqslant": "≤",
    "ge": "≥",
    "geq": "≥",
    "geqslant": "≥",
    "lt": "<",
    "gt": ">",
    "ne": "≠",
    "neq": "≠",
    "approx": "≈",
    "pm": "±",
    "cup": "∪",
    "cap": "∩",
    "in": "∈",
    "to": "→",
    "rightarrow": "→",
    "langle": "⟨",
    "rangle": "⟩",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "mid": "|",
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "delta": "δ",
    "epsilon": "ε",
    "theta": "θ",
    "lambda": "λ",
    "mu": "μ",
    "nu": "ν",
    "rho": "ρ",
    "sigma": "σ",
    "tau": "τ",
    "phi": "φ",
    "varphi": "φ",
    "omega": "ω",
    "Delta": "Δ",
    "Omega": "Ω",
    "Sigma": "Σ",
    "Phi": "Φ",
    "emptyset": "∅",
    "varnothing": "∅",
    "colon": ":",
    "sqrt": "√",
}


@lru_cache(maxsize=4_096)
def candidates(answer: str) -> tuple[str, ...]:
    """Candidate answers in a free text, most likely first: all of it, then without a trailing reason."""
    lines = [" ".join(line.split()) for line in final_answer(answer).split("\n") if line.strip()][:2]
    line = lines[0] if lines else ""
    if len(lines) > 1 and _SECOND_THOUGHT.match(lines[1]):
        line = f"{line} {lines[1]}"
    if len(line) > MAX_LINE:
        return (line,)
    out = [bare(line)]
    if (match := _REASON.search(line)) and not _HEDGE.search(line, match.end()):
        out.append(bare(line[: match.start()]))
    if out[0][-2:-1].isdigit() and out[0].endswith("!"):  # a factorial, or a cheer
        out.append(out[0][:-1])
    return tuple(dict.fromkeys(one for one in out if one))


@lru_cache(maxsize=4_096)
def whole(reference: str) -> str:
    """A complete reference without its markup."""
    text = " ".join(final_answer(reference).split())
    return bare(text) if len(text) <= MAX_LINE else text


def final_answer(text: str) -> str:
    r"""The final answer in a text: the last ``\boxed{}``, else what follows the last answer mark, else all of it."""
    if len(text) > MAX_CHARS:
        text = f"{text[:_HEAD]}\n{text[_HEAD - MAX_CHARS :]}"
    text = canonical(text)
    if (boxed := _boxed(text)) is not None:
        return boxed
    marks = [*_MARK.finditer(text), *_HEADING.finditer(text)]
    for mark in sorted(marks, key=lambda mark: mark.end(), reverse=True):
        if rest := _TAGS.sub("", text[mark.end() :]).strip():
            line = next(line for line in rest.split("\n") if line.strip())
            return line.strip("*_` ") or line.strip()
    return _TAGS.sub("", text).strip() or text.strip()


def _boxed(text: str) -> str | None:
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    open_at = text.index("{", start)
    depth = 0
    for end in range(open_at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[open_at + 1 : end].strip() or None
    return None


def bare(text: str) -> str:
    """Strip decoration from an answer; a text that would become empty is kept."""
    text = " ".join(text.split())
    for _ in range(8):
        before = text
        text = _without_pairs(_DOLLARS.sub(lambda m: m[1] or m[2], text))
        text = latex(text) if "\\" in text or "{" in text else text
        text = text.rstrip(";,").strip() or text
        if text.endswith("!") and not text[-2:-1].isdigit() and text[-2:-1] not in (")", "!", ""):
            text = text[:-1].rstrip()
        if text.endswith(".") and not text.endswith("..") and len(text) > 1:
            text = text[:-1].rstrip()
        text = _in_symbols(_without_lead(text))
        if text == before:
            break
    return text


def _without_pairs(text: str) -> str:
    for left, right in _PAIRS:
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            inner = text[len(left) : -len(right)].strip()
            if inner and left not in inner:
                text = inner
    if text.startswith(("**", "__")) and (end := text.find(text[:2], 2)) > 2:  # "**B** because" and "**B**) red"
        text = text[2:end] + text[end + 2 :]
    return text


def _in_symbols(text: str) -> str:
    """``x is 3`` as ``x = 3``, also ``x ≈ 3``; ``5 x 3`` as ``5×3``; ``infinity`` and ``{}`` as their signs."""
    text = _BY.sub("×", _IS.sub(r"\1 = ", text))
    if "≈" in text[1:]:
        text = text.replace("≈", "=")
    text = _NEGATIVE_INFINITY.sub("-∞", _INFINITY.sub("∞", text)).replace("+∞", "∞")
    return "∅" if text in ("{}", "{ }") else text


def _without_lead(text: str) -> str:
    if (match := _LEAD.match(text)) and text[match.end() :].strip():
        return text[match.end() :]
    if (match := _NAMED.match(text)) and not _DENIED.search(match[0]):
        return text[match.end() :]
    if (match := _PRAISED.search(text[-60:])) and not _DENIED.search(text):
        return text[: len(text) - len(match[0])]
    return text


def latex(text: str) -> str:
    r"""LaTeX as plain signs: ``\frac{a}{b}`` as ``((a)/(b))``, ``x^{2}`` as ``x^(2)``, ``\pi`` as ``π``.

    latex("1\\frac{1}{2}\\text{ cm}")  # "1 1/2 cm"
    """
    text = text.replace("\\{", "⦃").replace("\\}", "⦄").replace("{,}", ",")
    text = _BLANKS.sub(" ", _SPACING.sub("", _DEGREE.sub("°", text)))
    for _ in range(12):
        before = text
        text = _BRACED.sub(_unbrace, _WRAPPERS.sub(r"\1", text))
        if text == before or len(text) > 2 * MAX_CHARS:
            break
    text = re.sub(r"\s+_", "_", _COMMAND.sub(lambda m: _SYMBOLS.get(m[1], f" {m[1]} "), text))
    text = text.replace("\\%", "%").replace("\\$", "$").replace("\\#", "#").replace("\\&", "&").replace("\\_", "_")
    text = (
        _SIMPLE_FRACTION.sub(lambda m: f"{m[1]}{m[2]} {m[3]}/{m[4]}" if m[2] else f"{m[1]}{m[3]}/{m[4]}", text, count=1)
        if _SIMPLE_FRACTION.match(text)
        else text
    )
    return " ".join(text.replace("⦃", "{").replace("⦄", "}").split())


def _unbrace(m: re.Match[str]) -> str:
    if m[0].startswith("^"):
        inner = m[9]
        return (
            f"^{inner}"
            if re.fullmatch(r"\d+|[a-zA-Z]", inner) and not m.string[m.end() : m.end() + 1].isdigit()
            else f"^({inner})"
        )
    if m[0].startswith("_"):
        return "_" + re.sub(r"\W+", "", m[10]) + " "
    if "frac" in m[0][:6]:
        return f"(({m[1] or m[2]})/({m[3] or m[4]}))"
    if m[5] is not None:
        return f"root({m[5]},{m[6]})"
    return f"sqrt({m[7] if m[7] is not None else m[8]})"
