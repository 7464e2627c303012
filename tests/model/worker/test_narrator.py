"""The narrator keeps token order: nothing passes an unfinished final image, and late partials are dropped."""

from __future__ import annotations

import pytest

from model.engine.messages import Emitted
from model.text.template import StepPart, Template
from model.worker.narrator import ImageJob, ImageResult, Narrator

CODES = (1, 2, 3, 4)


def tokens(plain: Template) -> list[int]:
    return plain.response_ids([StepPart("look", CODES), StepPart("zoom in", (5, 6, 7, 8))], "red")


def result(final: bool) -> ImageResult:
    return ImageResult(b"png", 16, 16, {"tv": 0.5} if final else None)


def types(events: list[Emitted | object]) -> list[str]:
    return [t.event.type if isinstance(t, Emitted) else str(t) for t in events]


WHOLE = ["step.started", "text.delta", "image.started", "image.completed", "step.completed"]


def squeeze(names: list[str]) -> list[str]:
    """Collapse runs of deltas."""
    return [n for i, n in enumerate(names) if i == 0 or n != names[i - 1]]


def test_events_follow_token_order(plain: Template) -> None:
    narrator = Narrator(plain.parser())
    jobs: list[ImageJob] = []
    events: list[Emitted | object] = []
    for token in tokens(plain):
        jobs += narrator.feed(token)
        events += narrator.take()
    narrator.finish()
    narrator.end("end")
    assert squeeze(types(events)) == WHOLE[:3]
    narrator.image_done(jobs[1].ticket, result(True))  # the second image first
    assert narrator.take() == []
    narrator.image_done(jobs[0].ticket, result(True))
    events += narrator.take()
    assert squeeze(types(events)) == [*WHOLE, *WHOLE, "answer.delta", "end"]
    images = [t for t in events if isinstance(t, Emitted) and t.event.type == "image.completed"]
    assert [job.codes for job in jobs] == [CODES, (5, 6, 7, 8)]
    assert images[0].event.data == {"step": 1, "width": 16, "height": 16, "stats": {"tv": 0.5}}
    assert jobs[1].previous == CODES


def test_partials_are_evenly_spaced_and_droppable(plain: Template) -> None:
    narrator = Narrator(plain.parser(), partial_images=2, previous=(9, 9, 9, 9))
    jobs = [job for token in plain.steps_ids([StepPart("look", CODES)]) for job in narrator.feed(token)]
    assert [(len(j.codes), j.is_final) for j in jobs] == [(1, False), (3, False), (4, True)]
    assert all(j.previous == (9, 9, 9, 9) for j in jobs)
    narrator.image_skipped(jobs[0].ticket)
    narrator.image_done(jobs[2].ticket, result(True))
    events = narrator.take()
    assert squeeze(types(events)) == ["step.started", "text.delta", "image.started", "image.partial", *WHOLE[3:]]
    first, all_codes = (t for t in events if isinstance(t, Emitted) and t.event.type == "image.partial")
    assert first.png is all_codes.png is None
    assert first.event.data == {"step": 1, "index": 0, "codes_done": 1, "codes_total": 4}
    assert all_codes.event.data == {"step": 1, "index": 2, "codes_done": 4, "codes_total": 4}
    narrator.image_done(jobs[1].ticket, result(False))
    assert narrator.take() == []


@pytest.mark.parametrize("partial_images", [0, 1, 16, 64])
def test_last_code_event_precedes_decoded_image(plain: Template, partial_images: int) -> None:
    narrator = Narrator(plain.parser(), partial_images=partial_images)
    jobs = [job for token in plain.steps_ids([StepPart("look", CODES)]) for job in narrator.feed(token)]
    for job in jobs[:-1]:
        narrator.image_skipped(job.ticket)
    events = [t.event for t in narrator.take() if isinstance(t, Emitted) and t.event.type == "image.partial"]
    assert jobs[-1].is_final
    assert [event.data["codes_done"] for event in events][-1:] == [4] * bool(partial_images)
    assert len({event.data["index"] for event in events}) == len(events)


@pytest.mark.parametrize(("ends", "decoded"), [({2}, [3]), ({1}, [2, 3]), (set(), [3]), ({0, 1, 2}, [1, 2, 3])])
def test_last_partial_of_a_pass_is_decoded(plain: Template, ends: set[int], decoded: list[int]) -> None:
    narrator, jobs = Narrator(plain.parser(), partial_images=3), []
    stream = plain.steps_ids([StepPart("look", CODES)])
    for place, token in enumerate(stream, -stream.index(plain.vocab.image_ids(CODES)[1])):
        is_code = 0 <= place < 4
        jobs += narrator.feed(token, ends_pass=not is_code or place == 3 or place in ends, passes=7 * is_code)
    assert [len(job.codes) for job in jobs if not job.is_final] == decoded
    for job in jobs:
        narrator.image_done(job.ticket, result(job.is_final))
    events = [t for t in narrator.take() if isinstance(t, Emitted)]
    shown = [e.event.data["codes_done"] for e in events if e.event.type == "image.partial"]
    assert shown == [1, 2, 3, 4], "every code is reported, decoded or not"
    assert [e.event.data["stats"] for e in events if e.event.type == "image.completed"] == [{"tv": 0.5, "passes": 7}]


@pytest.mark.parametrize("template", ["plain", "tagged"])
def test_paused_narration_resumes_without_gaps(template: str, request: pytest.FixtureRequest) -> None:
    used: Template = request.getfixturevalue(template)
    response = used.response_ids([StepPart("one"), StepPart("two", CODES), StepPart("three")], "red")

    def run(narrator: Narrator, stream: list[int], events: list[Emitted | object]) -> int:
        for number, token in enumerate(stream, 1):
            for job in narrator.feed(token):
                narrator.image_done(job.ticket, result(job.is_final))
            events += narrator.take()
            if narrator.paused_after is not None:
                return number
        narrator.finish()
        events += narrator.take()
        return len(stream)

    whole: list[Emitted | object] = []
    run(Narrator(used.parser()), response, whole)
    parts: list[Emitted | object] = []
    done, skip, pauses = 0, 0, []
    while done < len(response):
        narrator = Narrator(used.parser(), skip=skip, step_mode=True)
        done = run(narrator, response, parts)
        skip = narrator.num_parsed
        pauses.append(narrator.paused_after)
        if narrator.paused_after is None:
            break
    assert parts == whole
    assert pauses[:2] == [1, 2]
    assert pauses[-1] is None
