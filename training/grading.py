"""Is an answer right? Knows nothing of tasks or pictures."""

from __future__ import annotations


def normalise(answer: str) -> str:
    """Lower case, without outer blanks and a final full stop."""
    text = " ".join(answer.lower().split())
    return text[:-1].rstrip() if text.endswith(".") else text


def is_right(answer: str | None, reference: str) -> bool:
    """Whether `answer` equals `reference` but for case, blanks and a final full stop; None (no answer) never does."""
    return answer is not None and normalise(answer) == normalise(reference)
