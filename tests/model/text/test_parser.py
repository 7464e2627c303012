"""Token ids in, steps and answer out: the rules of the event stream, one property per test."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from model.text.parser import TraceParser
from model.text.template import (
    AnswerDelta,
    CodeGenerated,
    ImageCompleted,
    ImageStarted,
    ParseEvent,
    StepCompleted,
    StepPart,
    StepStarted,
    Template,
    TextDelta,
)

CODES = (3, 1, 4, 1)
OTHER = (5, 9, 2, 6)


def feed(template: Template, ids: Sequence[int]) -> tuple[TraceParser, list[ParseEvent]]:
    parser = template.parser()
    events = [event for token_id in ids for event in parser.feed(token_id)]
    return parser, events + parser.finish()


def spelt(template: Template, text: str) -> list[int]:
    """The text in single-byte tokens; marks are spelt by unusual tokens, too."""
    single = {template.tokenizer.token_bytes(i): i for i in template.vocab.text_ids}
    return [single[bytes([byte])] for byte in text.encode()]


def text_of(events: Sequence[ParseEvent], step: int) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta) and e.step == step)


def answer_of(events: Sequence[ParseEvent]) -> str:
    return "".join(e.text for e in events if isinstance(e, AnswerDelta))


def merged(events: Sequence[ParseEvent]) -> list[ParseEvent]:
    """Join neighbouring deltas and drop codes."""
    result: list[ParseEvent] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, CodeGenerated):
            continue
        if isinstance(event, TextDelta) and isinstance(last, TextDelta) and last.step == event.step:
            result[-1] = TextDelta(event.step, last.text + event.text)
        elif isinstance(event, AnswerDelta) and isinstance(last, AnswerDelta):
            result[-1] = AnswerDelta(last.text + event.text)
        else:
            result.append(event)
    return result


@pytest.fixture(params=["plain", "tagged"])
def template(request: pytest.FixtureRequest, plain: Template, tagged: Template) -> Template:
    return plain if request.param == "plain" else tagged


def test_rendered_trajectory_parses_back(template: Template) -> None:
    steps = [StepPart("I look.", CODES), StepPart("No picture here."), StepPart("", OTHER), StepPart("Last")]
    parser, events = feed(template, template.response_ids(steps, "dark red"))
    assert parser.steps == [("I look.", CODES), ("No picture here.", None), ("", OTHER), ("Last", None)]
    assert parser.answer == "dark red"
    assert parser.well_formed
    assert merged(events) == [
        StepStarted(1),
        TextDelta(1, "I look."),
        ImageStarted(1),
        ImageCompleted(1, 0, CODES),
        StepCompleted(1),
        StepStarted(2),
        TextDelta(2, "No picture here."),
        StepCompleted(2),
        StepStarted(3),
        ImageStarted(3),
        ImageCompleted(3, 1, OTHER),
        StepCompleted(3),
        StepStarted(4),
        TextDelta(4, "Last"),
        StepCompleted(4),
        AnswerDelta("dark red"),
    ]


def test_random_trajectories_round_trip(template: Template) -> None:
    rng = random.Random(5)
    words = ["box", "T", "THOUGHT", "Final", "Final Answer", "12", "\n", "é😀", "<image>", "THOUGHT x:", "a b", "F"]
    for _ in range(150):
        steps = []
        for _ in range(rng.randint(1, 4)):
            text = " ".join(rng.choice(words) for _ in range(rng.randint(1, 6))).strip()
            drawn = tuple(rng.randrange(64) for _ in range(4)) if rng.random() < 0.6 else None
            steps.append(StepPart(text or "x", drawn))
        answer = " ".join(rng.choice(words) for _ in range(rng.randint(1, 3))).strip() or "y"
        parser, events = feed(template, template.response_ids(steps, answer))
        assert parser.steps == [(step.text, step.image) for step in steps]
        assert parser.answer == answer
        assert parser.well_formed
        for k, step in enumerate(steps, 1):
            assert text_of(events, k) == step.text
        assert answer_of(events) == answer


def test_codes_are_reported_with_their_index(plain: Template) -> None:
    _, events = feed(plain, plain.vocab.image_ids(CODES))
    assert [e for e in events if isinstance(e, CodeGenerated)] == [
        CodeGenerated(1, i, 4, c) for i, c in enumerate(CODES)
    ]


def test_marks_in_other_tokens_are_recognised(plain: Template) -> None:
    text = "THOUGHT 1: one\nTHOUGHT 2: two\nFinal Answer: three"
    parser, events = feed(plain, [*spelt(plain, text), plain.vocab.eos_id])
    assert parser.steps == [("one", None), ("two", None)]
    assert parser.answer == "three"
    assert parser.well_formed
    assert merged(events) == merged(feed(plain, [*plain.tokenizer.encode(text), plain.vocab.eos_id])[1])


def test_possible_marks_are_held_back(plain: Template) -> None:
    """After every byte, the text sent so far has no part of a mark and no outer white space."""
    parser = plain.parser()
    sent = ""
    for token_id in spelt(plain, "THOUGHT 1: see  THOUGHT 2: The Fin\nFinal Answer: ok"):
        for event in parser.feed(token_id):
            if isinstance(event, TextDelta):
                sent += event.text
        assert "THOUGHT" not in sent
        assert "Final" not in sent
        assert ":" not in sent
        assert sent == sent.rstrip()
    parser.finish()
    assert [text for text, _ in parser.steps] == ["see", "The Fin"]


def test_half_a_mark_at_end_is_text(plain: Template) -> None:
    for tail in ("THOUGHT", "THOUGHT 2", "Final Answer", "T", "F"):
        parser, events = feed(plain, plain.tokenizer.encode(f"THOUGHT 1: see {tail}"))
        assert parser.steps == [(f"see {tail}", None)]
        assert text_of(events, 1) == f"see {tail}"
        assert parser.answer is None
        assert not parser.well_formed


def test_half_a_mark_before_image_is_text(plain: Template) -> None:
    ids = [*plain.tokenizer.encode("THOUGHT 1: a THOUGHT"), *plain.vocab.image_ids(CODES)]
    assert feed(plain, ids)[0].steps == [("a THOUGHT", CODES)]


def test_mark_numbers_do_not_number_steps(plain: Template) -> None:
    """Released data counts from 0, and a model may miscount: steps always count from 1."""
    text = "THOUGHT 0: one\nTHOUGHT 7: two\nTHOUGHT 123: three"
    assert [t for t, _ in feed(plain, plain.tokenizer.encode(text))[0].steps] == ["one", "two", "three"]


def test_text_after_image_opens_next_step(plain: Template) -> None:
    ids = [
        *plain.tokenizer.encode("THOUGHT 1: a"),
        *plain.vocab.image_ids(CODES),
        *plain.tokenizer.encode(" then b"),
        *plain.vocab.image_ids(OTHER),
        *plain.tokenizer.encode("\n \nFinal Answer: c"),
        plain.vocab.eos_id,
    ]
    parser, events = feed(plain, ids)
    assert parser.steps == [("a", CODES), ("then b", OTHER)]
    assert parser.answer == "c"
    assert parser.well_formed
    assert sum(isinstance(e, StepStarted) for e in events) == sum(isinstance(e, StepCompleted) for e in events) == 2


def test_two_images_are_two_steps(plain: Template) -> None:
    ids = [*plain.vocab.image_ids(CODES), *plain.vocab.image_ids(OTHER)]
    assert feed(plain, ids)[0].steps == [("", CODES), ("", OTHER)]


def test_empty_marks_make_no_steps(plain: Template) -> None:
    ids = [*plain.tokenizer.encode("THOUGHT 1:\nTHOUGHT 2: x\nTHOUGHT 3:\nFinal Answer: y"), plain.vocab.eos_id]
    assert feed(plain, ids)[0].steps == [("x", None)]


def test_text_before_marks_is_first_step(plain: Template) -> None:
    ids = [*plain.tokenizer.encode("Well, red.\nFinal Answer: red"), plain.vocab.eos_id]
    parser = feed(plain, ids)[0]
    assert (parser.steps, parser.answer, parser.well_formed) == ([("Well, red.", None)], "red", True)


def test_marks_after_answer_belong_to_answer(plain: Template) -> None:
    ids = plain.tokenizer.encode("THOUGHT 1: a\nFinal Answer: x THOUGHT 2: y Final Answer: z")
    parser, events = feed(plain, ids)
    assert parser.answer == "x THOUGHT 2: y Final Answer: z" == answer_of(events)
    assert len(parser.steps) == 1


def test_answer_without_step_is_malformed(plain: Template) -> None:
    parser = feed(plain, [*plain.tokenizer.encode("\nFinal Answer: red"), plain.vocab.eos_id])[0]
    assert (parser.steps, parser.answer, parser.well_formed) == ([], "red", False)


def test_missing_or_empty_answer_is_malformed(plain: Template) -> None:
    eos = plain.vocab.eos_id
    parser = feed(plain, [*plain.tokenizer.encode("THOUGHT 1: a"), eos])[0]
    assert (parser.answer, parser.well_formed) == (None, False)
    parser = feed(plain, [*plain.tokenizer.encode("THOUGHT 1: a\nFinal Answer: \n"), eos])[0]
    assert (parser.answer, parser.well_formed) == ("", False)


def test_truncated_response_is_malformed(template: Template) -> None:
    ids = template.response_ids([StepPart("a", CODES)], "b")[:-1]
    parser = feed(template, ids)[0]
    assert parser.answer == "b"
    assert not parser.well_formed


def test_truncated_image_is_dropped(plain: Template) -> None:
    parser, events = feed(plain, [*plain.tokenizer.encode("THOUGHT 1: a"), *plain.vocab.image_ids(CODES)[:-2]])
    assert parser.steps == [("a", None)]
    assert not any(isinstance(e, ImageCompleted) for e in events)
    assert events[-1] == StepCompleted(1)


@pytest.mark.parametrize("length", [0, 3, 5])
def test_image_of_wrong_length_is_malformed(plain: Template, length: int) -> None:
    v = plain.vocab
    codes = [v.code_to_id(7)] * length
    ids = [*plain.tokenizer.encode("THOUGHT 1: a"), v.boi_id, *codes, v.eoi_id]
    parser = feed(plain, [*ids, *plain.tokenizer.encode("\nFinal Answer: b"), v.eos_id])[0]
    assert (parser.steps, parser.answer, parser.well_formed) == ([("a", None)], "b", False)


def test_text_inside_image_ends_it(plain: Template) -> None:
    v = plain.vocab
    ids = [v.boi_id, v.code_to_id(1), *plain.tokenizer.encode("\nFinal Answer: b"), v.eos_id]
    parser = feed(plain, ids)[0]
    assert (parser.steps, parser.answer, parser.well_formed) == ([("", None)], "b", False)


def test_image_after_answer_is_malformed(plain: Template) -> None:
    v = plain.vocab
    ids = [*plain.response_ids([StepPart("a", CODES)], "b")[:-1], *v.image_ids(OTHER), v.eos_id]
    parser = feed(plain, ids)[0]
    assert parser.steps == [("a", CODES), ("", OTHER)]
    assert parser.answer == "b"
    assert not parser.well_formed


def test_tokens_after_end_are_malformed_and_silent(template: Template) -> None:
    ids = template.response_ids([StepPart("a", CODES)], "b")
    parser, events = feed(template, [*ids, *template.tokenizer.encode("more")])
    assert parser.answer == answer_of(events) == "b"
    assert not parser.well_formed


def test_unknown_ids_are_malformed_and_silent(plain: Template) -> None:
    v = plain.vocab
    for stray in (v.pad_id, v.bos_id, v.eoi_id, v.image_placeholder_id, v.code_to_id(0), v.thought_open_id):
        assert stray is not None
        ids = [stray, *plain.response_ids([StepPart("a", CODES)], "b")]
        parser = feed(plain, ids)[0]
        assert (parser.steps, parser.answer, parser.well_formed) == ([("a", CODES)], "b", False)


def test_lead_phrase_is_never_shown(tagged: Template) -> None:
    v = tagged.vocab
    for phrase in ("Let's think step-by-step.", "Step-by-step reasoning follows.", ""):
        ids = tagged.response_ids([StepPart("a", CODES)], "b")
        ids = [*tagged.tokenizer.encode(phrase), *ids[ids.index(v.thought_open_id) :]]
        parser, events = feed(tagged, ids)
        assert text_of(events, 1) == "a"
        assert parser.well_formed


def test_reasoning_before_bracket_is_malformed(tagged: Template) -> None:
    text = "I look at the picture for a long time and then, after all, I draw a box around the star, I think."
    parser = feed(tagged, [*tagged.tokenizer.encode(text), tagged.vocab.eos_id])[0]
    assert (parser.steps, parser.well_formed) == ([(text, None)], False)
    parser = feed(tagged, [*tagged.tokenizer.encode("Short."), *tagged.vocab.image_ids(CODES)])[0]
    assert parser.steps == [("Short.", CODES)]


def test_brackets_out_of_order_are_malformed(tagged: Template) -> None:
    v, encode = tagged.vocab, tagged.tokenizer.encode
    assert v.thought_open_id and v.thought_close_id and v.answer_open_id and v.answer_close_id  # noqa: PT018
    a, b, c, d = v.thought_open_id, v.thought_close_id, v.answer_open_id, v.answer_close_id
    good = [a, *encode("x"), b, c, *encode("y"), d, v.eos_id]
    assert feed(tagged, good)[0].well_formed
    bad = {
        "no thought": [c, *encode("y"), d, v.eos_id],
        "thought never closed": [a, *encode("x"), c, *encode("y"), d, v.eos_id],
        "answer never closed": [a, *encode("x"), b, c, *encode("y"), v.eos_id],
        "thought twice": [a, *encode("x"), a, b, c, *encode("y"), d, v.eos_id],
        "text between": [a, *encode("x"), b, *encode("z"), c, *encode("y"), d, v.eos_id],
        "text after": [a, *encode("x"), b, c, *encode("y"), d, *encode("z"), v.eos_id],
    }
    for what, ids in bad.items():
        parser = feed(tagged, ids)[0]
        assert not parser.well_formed, what
        assert parser.answer == "y", what


def test_final_answer_in_tagged_rationale_is_text(tagged: Template) -> None:
    parser = feed(tagged, tagged.response_ids([StepPart("So Final Answer: B", CODES)], "B"))[0]
    assert (parser.steps, parser.answer, parser.well_formed) == ([("So Final Answer: B", CODES)], "B", True)


def test_split_character_arrives_whole(plain: Template) -> None:
    parser = plain.parser()
    sent = [event for token_id in spelt(plain, "a😀é") for event in parser.feed(token_id)]
    assert [e.text for e in sent if isinstance(e, TextDelta)] == ["a", "😀", "é"]


def test_replayed_ids_give_the_same_state(template: Template) -> None:
    """A resumed trace replays its ids; numbering continues."""
    ids = template.response_ids([StepPart("a", CODES), StepPart("b", OTHER)], "c")
    cut = ids.index(template.vocab.eoi_id) + 1
    parser = template.parser()
    for token_id in ids[:cut]:
        parser.feed(token_id)
    events = [event for token_id in ids[cut:] for event in parser.feed(token_id)]
    assert next(e for e in events if isinstance(e, StepStarted)) == StepStarted(2)
    assert next(e for e in events if isinstance(e, ImageCompleted)).index == 1


def test_second_finish_returns_nothing(plain: Template) -> None:
    parser = plain.parser()
    for token_id in plain.tokenizer.encode("THOUGHT 1: a"):
        parser.feed(token_id)
    assert parser.finish()
    assert parser.finish() == []


def test_unmarked_answer_follows_last_image(plain: Template) -> None:
    v, encode = plain.vocab, plain.tokenizer.encode
    ids = [
        *encode("I look."),
        *v.image_ids(CODES),
        *encode("I look again."),
        *v.image_ids(OTHER),
        *encode("It is red."),
    ]
    parser, events = feed(plain, [*ids, v.eos_id])
    assert (parser.answer, parser.unmarked, parser.well_formed) == ("It is red.", True, False)
    assert answer_of(events) == "It is red." == text_of(events, 3)
    assert parser.steps == [("I look.", CODES), ("I look again.", OTHER), ("It is red.", None)]


@pytest.mark.parametrize("what", ["cut off", "no image", "no text after it", "marked", "half an image"])
def test_other_responses_have_no_unmarked_answer(plain: Template, what: str) -> None:
    v, encode = plain.vocab, plain.tokenizer.encode
    image = v.image_ids(CODES)
    ids = {
        "cut off": [*encode("a"), *image, *encode("red")],
        "no image": [*encode("red"), v.eos_id],
        "no text after it": [*encode("red"), *image, v.eos_id],
        "marked": [*image, *encode("so\nFinal Answer: red"), v.eos_id],
        "half an image": [*encode("a"), *image[:-2], v.eos_id],
    }[what]
    parser = feed(plain, ids)[0]
    assert not parser.unmarked
    assert parser.answer == ("red" if what == "marked" else None)


def test_tagged_response_needs_its_brackets(tagged: Template) -> None:
    v, encode = tagged.vocab, tagged.tokenizer.encode
    parser = feed(tagged, [v.thought_open_id or 0, *v.image_ids(CODES), *encode("red"), v.eos_id])[0]
    assert (parser.answer, parser.unmarked) == (None, False)
