"""Answer grading for rewards, benchmarks and ``POST /v1/rewards``. Knows nothing of tasks or images.

:func:`grade` extracts the final answer, and the first applicable check decides: *exact*,
*option*, *number* and *unit*, *date*, *time* and *ratio*, *set* (tuples, intervals, lists), *formula*, *text*. A
verdict is right or wrong. Similarity earns partial credit only on request, never across an opposite.

Every step is bounded in length, depth and count, so that no answer takes long; nothing is executed.

    grade("The answer is 50 %.", "1/2").score  # 1.0
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from training.scoring.answers.compare import Check, Comparison
from training.scoring.answers.options import Options, read_label, read_named
from training.scoring.answers.undress import MAX_LINE, bare, candidates, final_answer, whole
from training.scoring.answers.words import similarity as text_similarity
from training.scoring.answers.words import turns_around

Verdict = Check | Literal["none", "option", "similarity"]


@dataclass(frozen=True, slots=True)
class Grade:
    """R_Acc and the check that decided it.

    Attributes:
        score: 1 right, 0 wrong; between them only for similarity.
        check: the deciding check; ``none`` if there was nothing to compare.
        answer: as it was compared.
        reference: as it was compared.
        details: intermediate values by name.
    """

    score: float
    check: Verdict
    answer: str = ""
    reference: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


def normalise(answer: str) -> str:
    """Lower-case, without outer blanks and a final full stop."""
    text = " ".join(answer.lower().split())
    return text[:-1].rstrip() if text.endswith(".") else text


def is_right(answer: str | None, reference: str) -> bool:
    """Whether `answer` equals `reference` up to case, blanks and a final full stop; None never does."""
    return answer is not None and normalise(answer) == normalise(reference)


def same_answer(one: str | None, other: str | None) -> bool:
    """Whether two responses give the same answer, or both none."""
    return is_right(one, other) if other is not None else one is None


def extract_answer(text: str) -> str:
    r"""The final answer in a free text: the last ``\boxed{}``, else what follows the last answer mark, else all."""
    return final_answer(text)


def grade(
    answer: str | None,
    reference: str,
    choices: Sequence[str] | Mapping[str, str] = (),
    *,
    exact: bool = False,
    similarity: bool = False,
) -> Grade:
    """Grade an answer.

    Args:
        answer: the given answer, or None.
        reference: the right answer; with `choices` it may be an option's label or its text.
        choices: the question's options in order, or by their labels, if any.
        exact: only ignore case, blanks and a final full stop, as for tasks of the world.
        similarity: whether a nearly equal text earns its similarity.
    """
    if answer is None or not answer.strip() or not reference.strip():
        return Grade(0.0, "none")
    if exact:
        return Grade(float(is_right(answer, reference)), "exact", normalise(answer), normalise(reference))
    if answer == reference:
        return Grade(1.0, "exact", answer.strip(), reference.strip())
    wanted = whole(reference)
    given = [one for one in candidates(answer) if len(one) <= MAX_LINE]
    if not given or len(wanted) > MAX_LINE:
        same = normalise(answer) == normalise(reference)
        return Grade(float(same), "text", answer.strip()[:MAX_LINE], wanted[:MAX_LINE])
    graded = [_decide(one, wanted, choices) for one in given]
    best = max(graded, key=lambda one: one.score)
    if similarity and best.score == 0 and best.check == "text" and (share := _similarity(answer, reference)):
        return Grade(share, "similarity", given[0], wanted)
    return best


def _similarity(answer: str, reference: str) -> float:
    """Similarity of the final answers; the whole texts must not contain opposites either."""
    if turns_around(final_answer(answer), final_answer(reference)):
        return 0.0
    return text_similarity(candidates(answer)[0], whole(reference))


def _decide(given: str, wanted: str, choices: Sequence[str] | Mapping[str, str]) -> Grade:
    comparison = Comparison()
    if choices:
        options = Options(choices, comparison.same, bare)
        if (graded := _by_option(given, wanted, options)) is not None:
            return graded
        right = options.find(wanted)
        if right is not None and len(right) == 1:
            wanted = options.texts[next(iter(right))]
    elif (graded := _by_label(given, wanted, comparison)) is not None:
        return graded
    right_, check = comparison.decide(given, wanted)
    return Grade(float(right_), check, given, wanted, comparison.details)


def _by_option(given: str, wanted: str, options: Options) -> Grade | None:
    """Compare the options that both name; None if either names none."""
    right, said = options.find(wanted), options.find(given)
    if not right:  # a self-contradicting reference counts by its label
        named = read_named(wanted)
        index = options.index(named.label) if named is not None and right is not None else None
        right = None if index is None else frozenset({index})
    if right is None or said is None:
        return None
    details = {"answer_option": _texts(options, said), "reference_option": _texts(options, right)}
    return Grade(float(right == said), "option", given, wanted, details)


def _texts(options: Options, indices: frozenset[int]) -> str:
    return "; ".join(options.texts[k] for k in sorted(indices)) or "label and text contradict each other"


def _by_label(given: str, wanted: str, comparison: Comparison) -> Grade | None:
    """Compare labels alone when the question's options are unknown; None without labels."""
    label, named = read_label(wanted), read_named(wanted)
    if label is not None:
        said = read_label(given)
        if said is None and (other := read_named(given)) is not None and len(other.label) == 1:
            said = other.label
        if said is None:
            return None
        return Grade(float(said == label), "option", given, wanted, {"answer_option": said, "reference_option": label})
    if named is not None and re.fullmatch(r"[A-J]", named.label):
        said, other = read_label(given), read_named(given)
        if said is not None:
            right = said == named.label
        elif other is not None and re.fullmatch(r"[A-J]", other.label):
            right = other.label == named.label and comparison.same(other.text, named.text)
        else:
            return None if comparison.same(given, wanted) else _text_only(given, wanted, named.text, comparison)
        return Grade(float(right), "option", given, wanted, {"reference_option": f"{named.label}: {named.text}"})
    if (
        (other := read_named(given)) is not None
        and re.fullmatch(r"[A-J]", other.label)
        and comparison.same(other.text, wanted)
    ):
        return Grade(1.0, "option", given, wanted, {"answer_option": f"{other.label}: {other.text}"})
    return None


def _text_only(given: str, wanted: str, text: str, comparison: Comparison) -> Grade | None:
    """Compare an answer without a label with a reference's text without its label."""
    return Grade(1.0, "option", given, wanted, {"reference_option": text}) if comparison.same(given, text) else None
