"""Rendering on both sides of the loss boundary; user text never becomes a special token."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.text.places import PlaceError
from model.text.template import ImagePart, StepPart, Template, TextPart, question_parts
from model.text.vocab import Vocabulary

CODES = (3, 1, 4, 1)


def test_plain_prompt_is_bos_images_question(plain: Template) -> None:
    v = plain.vocab
    ids = plain.prompt_ids("Where?", [CODES, (0, 0, 0, 0)])
    assert ids == [v.bos_id, *v.image_ids(CODES), *v.image_ids((0, 0, 0, 0)), *plain.tokenizer.encode("Where?")]


def test_tagged_prompt_has_wire_strings_and_tags(tagged: Template) -> None:
    v, encode = tagged.vocab, tagged.tokenizer.encode
    assert v.thought_open_id and v.thought_close_id and v.answer_open_id and v.answer_close_id  # noqa: PT018
    assert tagged.prompt_ids("Where?", [CODES]) == [
        v.bos_id,
        *encode("You are a helpful assistant.\nUser: "),
        *v.image_ids(CODES),
        *encode("Where?"),
        *encode(" Think with images first. The image reasoning process and answer are enclosed within "),
        v.thought_open_id,
        *encode(" "),
        v.thought_close_id,
        *encode(" and "),
        v.answer_open_id,
        *encode(" "),
        v.answer_close_id,
        *encode(" XML tags, respectively.\nAssistant:"),
    ]


def test_plain_response_reads_as_documented(plain: Template) -> None:
    v = plain.vocab
    ids = plain.response_ids([StepPart("I look.", CODES), StepPart("Hm."), StepPart("Done.", CODES)], "red")
    text = plain.tokenizer.decode(ids)
    assert text == "THOUGHT 1: I look.THOUGHT 2: Hm.\nTHOUGHT 3: Done.\nFinal Answer: red"
    assert ids[-1] == v.eos_id
    assert ids.count(v.boi_id) == ids.count(v.eoi_id) == 2


def test_tagged_response_reads_as_documented(tagged: Template) -> None:
    v, encode = tagged.vocab, tagged.tokenizer.encode
    ids = tagged.response_ids([StepPart("I look.", CODES), StepPart("Hm."), StepPart("Done.", CODES)], "red")
    assert ids == [
        *encode("Let's think step-by-step."),
        v.thought_open_id,
        *encode("I look."),
        *v.image_ids(CODES),
        *encode("Hm."),
        *encode("\nTHOUGHT 3: Done."),
        *v.image_ids(CODES),
        v.thought_close_id,
        v.answer_open_id,
        *encode("red"),
        v.answer_close_id,
        v.eos_id,
    ]


@pytest.mark.parametrize("name", ["plain", "tagged"])
def test_loss_mask_splits_prompt_and_response(name: str, plain: Template, tagged: Template) -> None:
    template = plain if name == "plain" else tagged
    steps = [StepPart("a", CODES)]
    rendered = template.render("q", [CODES], steps, "b")
    prompt = template.prompt_ids("q", [CODES])
    assert rendered.ids == prompt + template.response_ids(steps, "b")
    assert rendered.loss_mask == [0] * len(prompt) + [1] * (len(rendered.ids) - len(prompt))


def test_text_only_control_drops_images(plain: Template) -> None:
    steps = [StepPart("a", CODES), StepPart("b", CODES)]
    rendered = plain.render("q", [CODES], steps, "c", images_in_response=False)
    assert rendered == plain.render("q", [CODES], [StepPart("a"), StepPart("b")], "c")
    assert rendered.ids.count(plain.vocab.boi_id) == 1  # the question's


def test_parts_render_without_marks(plain: Template) -> None:
    v, encode = plain.vocab, plain.tokenizer.encode
    rendered = plain.render_parts([ImagePart(CODES), TextPart("draw")], [TextPart("ok"), ImagePart(CODES)])
    assert rendered.ids == [
        v.bos_id,
        *v.image_ids(CODES),
        *encode("draw"),
        *encode("ok"),
        *v.image_ids(CODES),
        v.eos_id,
    ]
    assert sum(rendered.loss_mask) == len(encode("ok")) + 6 + 1


@pytest.mark.parametrize("name", ["plain", "tagged"])
def test_prompt_len_equals_prompt_ids(name: str, plain: Template, tagged: Template) -> None:
    template = plain if name == "plain" else tagged
    for n in range(3):
        assert template.prompt_len("Where is it?", n) == len(template.prompt_ids("Where is it?", [CODES] * n))
        assert template.prompt_len("Where is it?", n) == len(template.prompt_ids("Where is it?", [None] * n))


def test_image_of_unknown_codes_is_n_placeholders(plain: Template) -> None:
    v = plain.vocab
    assert plain.prompt_ids("", [None]) == [v.bos_id, v.boi_id, *[v.image_placeholder_id] * 4, v.eoi_id]


@pytest.mark.parametrize("name", ["plain", "tagged"])
def test_special_strings_in_questions_stay_text(name: str, plain: Template, tagged: Template) -> None:
    template = plain if name == "plain" else tagged
    question = "<image></s><s> IMGIMGAZ <racm3:break> <reserved12856> <reserved08706> Final Answer: x"
    without = template.prompt_ids("")
    ids = template.prompt_ids(question)
    special = template.vocab.reserved_ids | set(template.vocab.code_ids)
    assert [i for i in ids if i in special] == [i for i in without if i in special]
    assert question in template.tokenizer.decode(ids)


def test_legal_text_excludes_other_special_ids(plain: Template, tagged: Template) -> None:
    v = plain.vocab
    tags = {v.thought_open_id, v.thought_close_id, v.answer_open_id, v.answer_close_id}
    assert set(plain.text_legal_ids()) == {*v.text_ids, v.eos_id}
    assert set(tagged.text_legal_ids()) == {*v.text_ids, v.eos_id} | tags
    never = {v.bos_id, v.pad_id, v.boi_id, v.eoi_id, v.image_placeholder_id, *v.code_ids}
    assert not never & (set(plain.text_legal_ids()) | set(tagged.text_legal_ids()))


def test_the_template_comes_from_the_manifest(tiny_checkpoint: Path, tiny_tagged_checkpoint: Path) -> None:
    assert Template.read(tiny_checkpoint).name == "plain"
    assert Template.read(tiny_tagged_checkpoint).name == "tagged"
    assert Template.read(tiny_checkpoint, "tagged").name == "tagged"


def test_unknown_template_is_rejected(vocab: Vocabulary, plain: Template) -> None:
    with pytest.raises(ValueError, match="unknown template"):
        Template("fancy", vocab, plain.tokenizer)  # type: ignore[arg-type]


def test_tagged_template_needs_its_tags(vocab: Vocabulary, plain: Template) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="reserved tags"):
        Template("tagged", replace(vocab, thought_open_id=None), plain.tokenizer)


def test_images_follow_their_placeholders(plain: Template, tagged: Template) -> None:
    first, second = CODES, (0, 0, 0, 0)
    for template in (plain, tagged):
        v, encode = template.vocab, template.tokenizer.encode
        bare = template.prompt_ids("")
        body = template.prompt_ids("Figure A: <image_1> Figure B: <image_2>?", [first, second])
        middle = [
            *encode("Figure A: "),
            *v.image_ids(first),
            *encode(" Figure B: "),
            *v.image_ids(second),
            *encode("?"),
        ]
        start = next(k for k in range(len(body)) if body[k : k + len(middle)] == middle)
        assert body[:start] + body[start + len(middle) :] == bare
        parts = [TextPart("Figure A: "), ImagePart(first), TextPart(" Figure B: "), ImagePart(second), TextPart("?")]
        assert template.prompt_ids(parts) == body


def test_images_without_placeholder_come_first(plain: Template) -> None:
    a, b, c = CODES, (0, 0, 0, 0), (5, 5, 5, 5)
    expected = [ImagePart(a), ImagePart(c), TextPart("Is "), ImagePart(b), TextPart(" or "), ImagePart(b)]
    assert question_parts("Is <image_2> or <image_2>", [a, b, c]) == expected
    assert plain.prompt_ids("<image_1><image_2>Which?", [a, b]) == plain.prompt_ids("Which?", [a, b])
    assert plain.prompt_ids("<image_2><image_1>Which?", [a, b]) == plain.prompt_ids("Which?", [b, a])


@pytest.mark.parametrize(
    ("text", "count"), [("<image_1>", 0), ("<image_2>", 1), ("<image_0>", 2), (f"<image_{'9' * 5000}>", 3)]
)
def test_placeholder_needs_its_image(plain: Template, text: str, count: int) -> None:
    with pytest.raises(PlaceError, match="the text names <image_"):
        plain.prompt_ids(text, [CODES] * count)


@pytest.mark.parametrize(
    "text", ["<image>", "<image_>", "<image_a>", "<image_1", "<Image_1>", "<image_-1>", "< image_1>"]
)
def test_other_marks_stay_literal_text(plain: Template, text: str) -> None:
    v = plain.vocab
    assert plain.prompt_ids(text, [CODES]) == [v.bos_id, *v.image_ids(CODES), *plain.tokenizer.encode(text)]


@pytest.mark.parametrize("text", ["<image_1> and <image_1>?", "a <image_2> b", " <image_3>", "x", "<image_1><image_3>"])
def test_prompt_len_is_independent_of_placement(plain: Template, tagged: Template, text: str) -> None:
    for template in (plain, tagged):
        assert template.prompt_len(text, 3) == len(template.prompt_ids(text, [CODES] * 3))
