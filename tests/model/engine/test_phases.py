"""Phases, scheduling and random numbers, without tensors."""

from __future__ import annotations

import random

import pytest

from model.engine.phases import ANSWER_ROOM, Legal, Phase, PhaseRules, PhaseState
from model.engine.scheduler import Scheduler
from model.engine.sequence import Draws, SamplingParams, Sequence, Status, sample_seed

RULES = PhaseRules(boi_id=7, eoi_id=8, eos_id=2, codes_per_image=4)


def waiting(name: str, **params: int) -> Sequence:
    return Sequence.create(name, 0, [0, 20, 21], SamplingParams(**params), rules=RULES, context_len=100, resumed=[])


def test_image_is_n_codes_and_forced_end() -> None:
    state = PhaseState(RULES, max_tokens=60, max_images=1)
    seen = []
    for token in (30, 7, 11, 12, 13, 14, 8, 31, 2):
        seen.append(state.legal)
        state.push(token)
    either, code = Legal.TEXT_OR_IMAGE, Legal.CODE
    assert seen == [either, either, code, code, code, code, Legal.FORCED, Legal.TEXT, Legal.TEXT]
    assert (state.phase, state.finish_reason, state.images_done) == (Phase.DONE, "stop", 1)


def test_begin_image_needs_room_for_answer() -> None:
    room = 4 + 2 + ANSWER_ROOM
    state = PhaseState(RULES, max_tokens=room + 1, max_images=9)
    assert state.legal is Legal.TEXT_OR_IMAGE
    state.push(30)
    assert state.legal is Legal.TEXT_OR_IMAGE  # exactly enough tokens are left
    state.push(30)
    assert state.legal is Legal.TEXT
    assert RULES.images_that_fit(room - 1) == 0
    assert RULES.images_that_fit(room) == 1
    assert RULES.images_that_fit(room + 6) == 2


def test_length_ends_sequence_at_last_token() -> None:
    state = PhaseState(RULES, max_tokens=3, max_images=0)
    for token in (30, 31):
        state.push(token)
        assert state.finish_reason is None
    state.push(32)
    assert state.finish_reason == "length"


def test_freed_slot_takes_last_sequence() -> None:
    scheduler = Scheduler(4, admissions_per_step=4)
    sequences = [waiting(str(i)) for i in range(6)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert scheduler.admit() == sequences[:4]
    assert scheduler.remove(sequences[1], Status.FINISHED) is sequences[3]
    assert [s.slot for s in scheduler.running] == [0, 1, 2]
    assert scheduler.running[1] is sequences[3]
    assert scheduler.admit() == [sequences[4]]


def test_admission_is_first_come_first_served() -> None:
    rng, scheduler, order, born = random.Random(1), Scheduler(3, admissions_per_step=2), [], 0
    for _ in range(400):
        for _ in range(rng.randrange(3)):
            scheduler.add(waiting(str(born)))
            born += 1
        if scheduler.waiting and rng.random() < 0.2:
            scheduler.remove(rng.choice(list(scheduler.waiting)), Status.ABORTED)
        order += [int(s.request_id) for s in scheduler.admit()]
        assert [s.slot for s in scheduler.running] == list(range(len(scheduler.running)))
        if scheduler.running:
            scheduler.remove(rng.choice(scheduler.running), Status.FINISHED)
    assert order == sorted(order)
    assert len(order) > 250


def test_random_numbers_are_portable_and_skippable() -> None:
    draws = Draws(7)
    first = [draws.take() for _ in range(5)]
    assert first[0][0] == pytest.approx(0.32383276483316237)  # random.Random(7), fixed by the language
    assert Draws(7, count=6).take() == first[2]
    ahead = Draws(7)
    assert [ahead.peek(place) for place in (3, 0, 4)] == [first[place] for place in (3, 0, 4)]
    assert ahead.count == 0
    assert [ahead.take() for _ in range(5)] == first
    assert ahead.count == draws.count
    assert sample_seed(7, 0) == 7
    assert len({sample_seed(7, i) for i in range(100)} | {sample_seed(8, i) for i in range(100)}) == 200


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"max_new_tokens": 0},
        {"max_images": -1},
    ],
)
def test_invalid_sampling_values_are_rejected(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SamplingParams(**values)  # type: ignore[arg-type]
