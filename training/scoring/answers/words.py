"""Texts as words: overlap of two phrasings, opposites, and similarity."""

from __future__ import annotations

import re
from collections import Counter
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import product

from training.scoring.answers.numerals import NUMBER_WORDS, read_number, spelled_number

MIN_SIMILARITY = 0.77
MAX_SIMILAR_CHARS = 1_000  # a longer text earns no similarity

_TOKEN = re.compile(
    r"-∞|\d{1,6}(?:st|nd|rd|th)\b|(?:(?<=^)|(?<=[\s(,]))[+-]?\d[\d.,:/]*(?<=\d)|\d[\d.,:/]*(?<=\d)|[^\W\d_]+(?:'[^\W\d_]+)*|[+*/^=<>≤≥≠≈±%‰°$€£¥&|#@~√∞∪∩∈→]"
)
_ARTICLE = re.compile(r"(?<!\w)(?:a|an|the)\s+(?=[^\W_])")
_SPELLINGS = {
    "colour": "color",
    "grey": "gray",
    "centre": "center",
    "metre": "meter",
    "litre": "liter",
    "tyre": "tire",
    "neighbour": "neighbor",
    "aluminium": "aluminum",
    "sulphur": "sulfur",
    "programme": "program",
    "theatre": "theater",
    "anticlockwise": "counterclockwise",
    "favour": "favor",
    "catalogue": "catalog",
    "cheque": "check",
    "&": "and",
    "ok": "okay",
    "parallelogramme": "parallelogram",
    "rhombi": "rhombus",
    "vertices": "vertex",
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "geese": "goose",
    "leaves": "leaf",
    "radii": "radius",
    "axes": "axis",
}
_SHORT_FORMS = (("can't", "can not"), ("cannot", "can not"), ("won't", "will not"), ("n't", " not"), ("'re", " are"))
_YES = frozenset({"yes", "true", "yeah", "yep", "correct", "y", "t"})
_NO = frozenset({"no", "false", "nope", "incorrect", "n", "f"})
_POLAR = re.compile(r"(yes|no|true|false)(?:[,.;:!]\s+(.+))?", re.IGNORECASE | re.DOTALL)

NEGATIONS = frozenset(
    [
        "no",
        "not",
        "non",
        "never",
        "none",
        "neither",
        "nor",
        "nothing",
        "nobody",
        "nowhere",
        "without",
        "cannot",
        "hardly",
        "barely",
        "except",
    ]
)
_PREFIXES = (
    "counter",
    "anti",
    "contra",
    "under",
    "over",
    "non",
    "dis",
    "mis",
    "un",
    "in",
    "im",
    "il",
    "ir",
    "de",
    "a",
    "re",
    "sub",
    "super",
)
_DIRECTIONS = ("ex", "pre", "post", "inter", "intra", "hyper", "hypo", "macro", "micro", "max", "min", "endo", "exo")
_SUFFIXES = ("less", "free", "proof")
_OPPOSITES = """
left right|up down|upper lower|top bottom|above below|over under|inside outside|in out|inner outer
interior exterior|internal external|increase decrease|increasing decreasing|increased decreased
increases decreases|rise fall|rising falling|rises falls|grow shrink|growing shrinking
clockwise counterclockwise|before after|earlier later|early late|first last|front back|forward backward
forwards backwards|ahead behind|north south|east west|northern southern|eastern western
horizontal vertical|parallel perpendicular|open closed|opened shut|on off|more less|more fewer
greater smaller|larger smaller|bigger smaller|most least|maximum minimum|max min|highest lowest
high low|higher lower|tall short|taller shorter|long short|longer shorter|wide narrow|wider narrower
big small|large small|thick thin|heavy light|heavier lighter|fast slow|faster slower|hot cold
warm cool|hotter colder|light dark|bright dim|black white|full empty|near far|nearer farther
nearest farthest|closest furthest|close distant|same different|equal unequal|similar dissimilar
odd even|positive negative|plus minus|add subtract|multiply divide|accept reject|win lose|winner loser
success failure|succeed fail|pass fail|true false|yes no|right wrong|correct incorrect|always never
all none|every no|some none|everybody nobody|present absent|possible impossible|with without
enter exit|entrance exit|start end|begin end|beginning ending|old young|older younger|new old
male female|man woman|boy girl|he she|his her|king queen|husband wife|father mother|son daughter
brother sister|buy sell|push pull|attract repel|attractive repulsive|expand contract|solid liquid
liquid gas|acid base|acidic basic|convex concave|ascending descending|ascend descend|ascends descends
upward downward|upwards downwards|rough smooth|hard soft|wet dry|strong weak|stronger weaker|rich poor
cheap expensive|day night|morning evening|sunrise sunset|summer winter|happy sad|good bad|better worse
best worst|love hate|alive dead|live die|safe dangerous|clean dirty|public private|single married
import export|input output|asleep awake|gain loss|profit loss|major minor|majority minority
absorb emit|dominant recessive|predator prey|producer consumer|cause effect|clockwise anticlockwise
exothermic endothermic|reactant product|numerator denominator|sine cosine|sin cos|row column|x y
include exclude|included excluded|appear disappear|visible invisible|vertical diagonal
prokaryotic eukaryotic|prokaryote eukaryote|mitosis meiosis|herbivore carnivore|autotroph heterotroph
oxidation reduction|oxidized reduced|active passive|aerobic anaerobic|acute obtuse
"""


@lru_cache(maxsize=8_192)
def words_of(text: str) -> tuple[str, ...]:
    """A text as comparable words: lower case, no articles or punctuation, numbers as digits, singular, one spelling."""
    text = text.casefold()
    for short, long in _SHORT_FORMS:
        text = text.replace(short, long)
    text = _ARTICLE.sub("", text)
    words = [word.removesuffix("'s") for word in _TOKEN.findall(text)]
    return tuple(
        _SPELLINGS.get(word) or _SPELLINGS.get(singular(word)) or singular(word) for word in _with_digits(words)
    )


def _with_digits(words: list[str]) -> list[str]:
    """Number words as digits (``twenty one`` is ``21``), numerals in one form (``1,000.0`` is ``1000``)."""
    out: list[str] = []
    k = 0
    while k < len(words):
        word = words[k]
        if word[0].isdigit() and word[-1].isalpha():
            out.append(f"{word[:-2]}th")
        elif word[-1].isdigit():
            number = read_number(word)
            plain = number is not None and not number.rest and number.value.denominator == 1 and len(word) < 40
            out.append(str(number.value) if number is not None and plain else word)
        elif word in NUMBER_WORDS and word != "second" and (spelled := spelled_number(words[k : k + 12])):
            value, used, ordinal = spelled
            out.append(f"{value}{'th' if ordinal else ''}")
            k += used - 1
        else:
            out.append(word)
        k += 1
    return out


@lru_cache(maxsize=8_192)
def singular(word: str) -> str:
    """The singular of a regular plural; other words unchanged."""
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is", "ous")) or not word.isalpha():
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    return word[:-1]


def same_words(one: str, other: str) -> bool:
    """Whether two texts are the same words, ignoring hyphens, punctuation and capitals."""
    a, b = words_of(one), words_of(other)
    if not a or not b:
        return False
    return a == b or (max(len(a), len(b)) <= 40 and _joined(a) == _joined(b))


def _joined(words: tuple[str, ...]) -> str:
    """Words without blanks; numbers keep theirs."""
    return "".join(word if word.isalpha() else f" {word} " for word in words)


def polarity(text: str) -> bool | None:
    """Yes or no, with or without a sentence after it; None for anything else."""
    low = text.casefold().strip()
    if low in _YES or low in _NO:
        return low in _YES
    if (match := _POLAR.fullmatch(low)) is None or match[2] is None:
        return None
    value = match[1] in _YES
    return None if (_NO if value else _YES).intersection(words_of(match[2])) - {"right"} else value


_PAIRS = frozenset(
    (singular(one), singular(other))
    for line in _OPPOSITES.strip().splitlines()
    for one, other in (pair.split() for pair in line.split("|"))
)
POLAR_WORDS = frozenset(word for pair in _PAIRS for word in pair) | NEGATIONS


def are_opposites(one: str, other: str) -> bool:
    """Whether two words are opposites: antonyms, or one is the other with a negating prefix or suffix."""
    a, b = sorted((one, other), key=len)
    if (a, b) in _PAIRS or (b, a) in _PAIRS:
        return True
    if len(a) >= 3 and b.endswith(a) and b[: -len(a)] in _PREFIXES:
        return True
    roots = {a, a.removesuffix("ful"), a.removesuffix("e")}
    if any(b == root + suffix for root in roots for suffix in _SUFFIXES):
        return True
    return any(  # increase/decrease, include/exclude, underestimate/overestimate
        one.startswith(p) and other.startswith(q) and len(one) - len(p) >= 3 and one[len(p) :] == other[len(q) :]
        for p, q in product((*_PREFIXES, *_DIRECTIONS), repeat=2)
        if p != q
    )


def turns_around(one: str, other: str) -> bool:
    """Whether the difference between two texts may change the meaning: a negation, an opposite, a number, an order."""
    a, b = words_of(one), words_of(other)
    only_a, only_b = list((Counter(a) - Counter(b)).elements()), list((Counter(b) - Counter(a)).elements())
    if any(map(_is_decisive, [*only_a, *only_b])):
        return True
    if not only_a and not only_b:
        return a != b and not POLAR_WORDS.isdisjoint(a)
    if len(only_a) * len(only_b) > 400:
        return True
    return any(are_opposites(x, y) for x in only_a for y in only_b)


def _is_decisive(word: str) -> bool:
    return word in POLAR_WORDS or not word.isalpha() or word in NUMBER_WORDS or len(word) == 1


def similarity(one: str, other: str) -> float:
    """Similarity of two texts, above `MIN_SIMILARITY` up to 1; 0 if one may negate the other."""
    if max(len(one), len(other)) > MAX_SIMILAR_CHARS or turns_around(one, other):
        return 0.0
    a, b = " ".join(words_of(one)), " ".join(words_of(other))
    ratio = SequenceMatcher(None, a, b, autojunk=False).ratio()
    return ratio if ratio > MIN_SIMILARITY else 0.0
