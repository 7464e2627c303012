"""Several candidates for an image, of which a verifier chooses the one that goes on.

At begin-image a sequence forks: its candidates start from the same cached rows and draw only the image's codes.
Candidate 1 is the sequence itself, so it draws what it would have drawn alone. The others draw with random numbers of
their own, a function of the request's seed, the image's number and theirs; a greedy request draws them at temperature
1, since greedy ones would all be the same. They take free slots before other requests do. A complete candidate gives
its slot back and keeps its rows until all are complete. Then the verifier scores them together, the best one's codes
and rows become the sequence's, and the sequence continues. The random numbers of the response do not depend on which
candidate was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial

from model.engine.phases import Legal, Phase
from model.engine.scheduler import Scheduler
from model.engine.sequence import Chosen, Draws, Fork, Sequence, SequenceOutput, Status, sample_seed
from model.nets.slot_cache import SequenceCache
from model.seeds import mixed_seed


class Candidates:
    """Forks sequences, and joins them again. Belongs to an engine."""

    def __init__(self, scheduler: Scheduler, cache: SequenceCache, remove: Callable[[Sequence, Status], None]) -> None:
        """`remove` frees a sequence's slot."""
        self._scheduler, self._cache, self._remove = scheduler, cache, remove

    def fork(self, sequence: Sequence) -> None:
        """Fork a running sequence if it has just begun an image that is to have candidates."""
        state, params, count = sequence.state, sequence.params, sequence.state.rules.codes_per_image
        begins = state.phase is Phase.IMAGE and state.codes_done == 0
        if params.candidates == 1 or sequence.fork is not None or not begins or sequence.verifier is None:
            return
        judge = sequence.verifier.about(sequence.prompt, sequence.response)
        if judge is None or state.max_tokens - state.num_tokens <= count:  # the image would not be complete
            return
        fork = Fork(judge, self._cache.hold(sequence.slot, sequence.position), [sequence])
        seed, warm = sample_seed(params.seed, sequence.index), replace(params, temperature=params.temperature or 1.0)
        for number in range(1, params.candidates):
            other = replace(
                sequence,
                params=warm,
                state=copy(state),
                draws=Draws(mixed_seed(seed, state.images_done, number)),
                response=list(sequence.response),
                logprobs=list(sequence.logprobs),
                legal=bytearray(sequence.legal),
                slot=-1,
                kv=fork.prefix,
                group=sequence.group or f"candidates of {sequence.request_id}",
            )
            fork.members.append(other)
        for member in fork.members:
            member.fork = fork
        self._scheduler.add_first(fork.members[1:])

    def take(self, sequence: Sequence, outputs: list[SequenceOutput]) -> list[SequenceOutput]:
        """Take the outputs of a sequence that has made a step; returns the outputs to report."""
        fork, output = sequence.fork, outputs[-1]
        if sequence.status is not Status.RUNNING:
            return []  # a failed sequence's candidate
        if output.finished_by is not None:
            self._remove(sequence, Status.FINISHED)
            if fork is None:
                return outputs
            if sequence is fork.members[0]:
                for other in fork.members[1:]:
                    self._remove(other, Status.ABORTED)
                return [output]
            fork.members.remove(sequence)
        elif fork is None:
            self.fork(sequence)
            return outputs
        elif sequence.state.legal is Legal.FORCED:
            start = fork.prefix.length
            fork.rows[id(sequence)] = self._cache.export(sequence.slot, sequence.position, start=start)
            self._remove(sequence, Status.WAITING)
        return self._join(fork) if len(fork.rows) == len(fork.members) else []

    def ended(self, sequence: Sequence, status: Status) -> None:
        """Let go of what is held for a sequence, unless it goes on: `status` says where it is now."""
        if status is Status.WAITING:
            return
        if sequence.kv is not None and sequence.kv.once:
            self._cache.let_go(sequence.kv)
        fork = sequence.fork
        if fork is not None and (status is Status.ABORTED or sequence is fork.members[0]):
            self._cache.let_go(fork.prefix)

    def _join(self, fork: Fork) -> list[SequenceOutput]:
        """Continue with the best candidate, the first of equal ones; returns the outputs of its codes."""
        first, count = fork.members[0], fork.members[0].state.rules.codes_per_image
        drawn = tuple(tuple(member.response[-count:]) for member in fork.members)
        scores = tuple(-math.inf if math.isnan(score) else score for score in fork.judge(drawn))
        best = scores.index(max(scores))
        winner = fork.members[best]
        first.response[-count:], first.logprobs[-count:] = winner.response[-count:], winner.logprobs[-count:]
        first.last_token, first.fork = first.response[-1], None
        first.kv = fork.prefix.followed_by(fork.rows[id(winner)])
        self._scheduler.add_first([first])
        chosen = Chosen(drawn, scores, best)
        first.passes = max(member.passes for member in fork.members)
        of = partial(SequenceOutput, first.request_id, first.index, legal=Legal.CODE, finished_by=None, ends_pass=False)
        codes = [of(*code) for code in zip(drawn[best], first.logprobs[-count:], strict=True)]
        return [*codes[:-1], replace(codes[-1], chosen=chosen, ends_pass=True, passes=first.passes)]
