"""Ids are read from the checkpoint: 7B names and order, codes both ways, and rejection of inconsistent files."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.config import ModelConfig
from model.text.vocab import Vocabulary, VocabularyError, code_of_token, code_token

Described = tuple[ModelConfig, dict[str, Any]]


def test_code_names_spell_digits_as_letters() -> None:
    assert code_token(0) == "IMGIMGAZ"
    assert code_token(8191) == "IMGIMGIBJBZ"
    assert all(code_of_token(code_token(code)) == code for code in range(8192))
    for other in ("IMGIMGZ", "IMGIMGKZ", "IMGIMGA", "<image>", "xIMGIMGAZ"):
        assert code_of_token(other) is None


def test_code_names_match_transformers() -> None:
    from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

    tokens = {code_token(code): 7 * code + 5 for code in range(500)} | {"<image>": 1}
    assert ChameleonImageVocabularyMapping(tokens).img2bpe == {code: 7 * code + 5 for code in range(500)}


def test_order_of_ids_matches_the_7b(vocab: Vocabulary) -> None:
    k = vocab.num_codes
    assert (vocab.bos_id, vocab.pad_id, vocab.eos_id) == (0, 1, 2)
    assert vocab.code_ids == tuple(range(4, 4 + k))
    assert (vocab.eoi_id, vocab.boi_id, vocab.image_placeholder_id) == (4 + k, 5 + k, 6 + k)
    tags = (vocab.thought_open_id, vocab.thought_close_id, vocab.answer_open_id, vocab.answer_close_id)
    assert tags == (7 + k, 8 + k, 9 + k, 10 + k)
    assert min(vocab.text_ids) == 11 + k
    assert vocab.size == 11 + k + len(vocab.text_ids)


def test_every_id_has_exactly_one_role(vocab: Vocabulary) -> None:
    parts = [set(vocab.code_ids), set(vocab.text_ids), set(vocab.reserved_ids)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == vocab.size


def test_code_and_token_id_map_both_ways(vocab: Vocabulary) -> None:
    assert [vocab.id_to_code(vocab.code_to_id(code)) for code in range(vocab.num_codes)] == list(range(vocab.num_codes))
    assert all(vocab.is_code(i) for i in vocab.code_ids)
    for other in (vocab.bos_id, vocab.boi_id, vocab.text_ids[0], -1, vocab.size):
        assert vocab.id_to_code(other) is None
        assert not vocab.is_code(other)


@pytest.mark.parametrize("code", [-1, 64])
def test_code_outside_codebook_is_an_error(vocab: Vocabulary, code: int) -> None:
    with pytest.raises(ValueError, match="outside the codebook"):
        vocab.code_to_id(code)


def test_image_is_begin_codes_end(vocab: Vocabulary) -> None:
    assert vocab.image_ids((1, 2, 3, 63)) == [vocab.boi_id, 5, 6, 7, 67, vocab.eoi_id]
    assert len(vocab.placeholder_ids()) == vocab.tokens_per_image == vocab.codes_per_image + 2
    with pytest.raises(ValueError, match="4 codes, got 3"):
        vocab.image_ids((1, 2, 3))


def test_codes_need_not_stand_in_order(described: Described) -> None:
    """The map decides, not an offset: codes follow when the ids of two codes are swapped."""
    config, tokenizer = described
    a, b = code_token(3), code_token(9)
    swapped = dict(config.vocabulary_map)
    swapped[a], swapped[b] = swapped[b], swapped[a]
    text = copy.deepcopy(tokenizer)
    text["model"]["vocab"][a], text["model"]["vocab"][b] = swapped[a], swapped[b]
    text["added_tokens"] = [t for t in text["added_tokens"] if t["content"] not in (a, b)]
    vocab = Vocabulary.from_parts(replace(config, vocabulary_map=swapped), text)
    assert vocab.code_to_id(3) == config.vocabulary_map[b]
    assert vocab.id_to_code(config.vocabulary_map[a]) == 9


def test_bos_comes_from_the_tokenizer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The released 7B files have bos_token_id 1 in both configs; the tokenizer's <s> is 0."""
    import json
    import shutil

    folder = shutil.copytree(tiny_checkpoint, tmp_path / "wrong-bos")
    for name in ("generation_config.json", "config.json"):
        data = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(data | {"bos_token_id": 1}))
    assert Vocabulary.read(folder).bos_id == 0


def test_special_names_may_come_from_tokenizer_config(described: Described) -> None:
    config, tokenizer = described
    vocab = Vocabulary.from_parts(config, tokenizer, {"bos_token": {"content": "<pad>"}, "eos_token": "<s>"})
    assert (vocab.bos_id, vocab.eos_id) == (1, 0)


def test_inconsistent_vocabularies_are_rejected(described: Described) -> None:
    config, tokenizer = described
    without_code = {t: i for t, i in config.vocabulary_map.items() if t != code_token(5)}
    with pytest.raises(VocabularyError, match="code 5 has no token"):
        Vocabulary.from_parts(replace(config, vocabulary_map=without_code), tokenizer)
    small = replace(config.transformer, vocab_size=config.transformer.vocab_size - 1)
    with pytest.raises(VocabularyError, match="vocab_size is"):
        Vocabulary.from_parts(replace(config, transformer=small), tokenizer)
    moved = dict(config.vocabulary_map) | {"<image>": 3}
    with pytest.raises(VocabularyError, match="'<image>' is 70 in tokenizer"):
        Vocabulary.from_parts(replace(config, vocabulary_map=moved), tokenizer)
    nameless = copy.deepcopy(tokenizer)
    nameless["added_tokens"] = []
    del nameless["model"]["vocab"]["<eoss>"]
    lost = {t: i for t, i in config.vocabulary_map.items() if t != "<eoss>"}
    with pytest.raises(VocabularyError, match="<eoss>"):
        Vocabulary.from_parts(replace(config, vocabulary_map=lost), nameless)
