"""Speculative drawing: guesses at an image's next codes, which one forward pass verifies.

An image of a trace is an edit of the one before, so most codes repeat the previous image's at the same place. A row
feeds its last token and a window of guessed codes; every place of the window is then drawn with its own random numbers,
exactly as without a guess. The first drawn code that differs from its guess is the sample, and what was computed for
later places is dropped, so a guess changes the number of forward passes, never a token.

What a place after a wrong guess was drawn as, although from a wrong beginning, becomes the next guess for it (a step of
a Jacobi iteration, after arXiv 2410.01699). Knows token ids, no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from itertools import accumulate, takewhile

from model.engine.phases import Legal, PhaseRules
from model.engine.sequence import Draft, Sequence

MOST_ROWS = 16  # with more rows a pass is bound by arithmetic, and wrong guesses cost more than they save
_LEAST = 16  # window of an image's first pass, and after a wrong guess; narrower ones learn less from a pass


class Drafts:
    """Chooses windows. A window depends on its own row's history only."""

    def __init__(self, rules: PhaseRules, most: int) -> None:
        """`most` is the widest window in codes; 0 and 1 mean one code a pass.

        Raises:
            ValueError: a negative window.
        """
        if most < 0:
            raise ValueError(f"a window of {most} codes is negative")
        self.rules, self.most = rules, most

    def guesses(self, running: Seq[Sequence]) -> list[list[int]] | None:
        """What each row guesses to follow its last token and the next one; None if no row guesses anything."""
        if self.most < 2 or len(running) > MOST_ROWS:
            return None
        guesses = [self._guess(s) if s.state.legal is Legal.CODE else [] for s in running]
        return guesses if any(guesses) else None

    def _guess(self, sequence: Sequence) -> list[int]:
        state, draft = sequence.state, sequence.draft
        if state.codes_done == 0 or draft is None:
            draft = sequence.draft = Draft(self._previous_image(sequence), min(_LEAST, self.most))
        if not draft.ids:
            if state.codes_done == 0:
                return []
            draft.ids = [sequence.last_token] * self.rules.codes_per_image
        left = min(self.rules.codes_per_image - state.codes_done, state.max_tokens - state.num_tokens)
        return draft.ids[state.codes_done : state.codes_done + min(draft.window, left) - 1]

    def _previous_image(self, sequence: Sequence) -> list[int]:
        """The codes of the image before, from the question or the response; none if there is no whole one."""
        ids, count = [*sequence.prompt, *sequence.response], self.rules.codes_per_image
        for place in range(len(ids) - 1, count, -1):
            if ids[place] == self.rules.eoi_id and ids[place - count - 1] == self.rules.boi_id:
                return ids[place - count : place]
        return []

    def settle(self, sequence: Sequence, drawn: Seq[int], accepted: int) -> None:
        """Learn from a window: what its places were drawn as, and how many of those count."""
        draft, done = sequence.draft, sequence.state.codes_done
        assert draft is not None
        if accepted == len(drawn):
            draft.window = min(2 * draft.window, self.most)
            return
        draft.window = min(_LEAST, self.most)
        again = list(takewhile(lambda token: token >= 0, drawn[accepted:]))  # -1: the logits were NaN
        draft.ids[done : done + len(again)] = again


def num_accepted(drawn: Seq[int], guess: Seq[int]) -> int:
    """How many drawn tokens count: those that are as guessed, and the next one."""
    return next((place for place, (a, b) in enumerate(zip(drawn, guess, strict=False), 1) if a != b), len(drawn))


def nan_rows(widths: Seq[int], logprobs: Seq[float]) -> list[bool]:
    """Whether each row has a NaN among its window's log-probabilities."""
    ends = accumulate(widths)
    return [any(map(math.isnan, logprobs[end - width : end])) for end, width in zip(ends, widths, strict=True)]
