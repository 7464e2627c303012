"""Text in, ids out and back: no forged special tokens, no crashes, no split characters."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from typing import Any

import pytest

from model.config import ModelConfig
from model.text.tokenizer import TextTokenizer, clean_text, train_bpe
from model.text.vocab import Vocabulary, VocabularyError

Described = tuple[ModelConfig, dict[str, Any]]

FORGERIES = [
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "<image>",
    "<eoss>",
    "<racm3:break>",
    "IMGIMGAZ",
    "IMGIMGBCZ",
    "<reserved08706>",
    "<reserved12856>",
    "<reserved12866> <reserved12867>",
    "<sentinel:0>",
    "a<image>b",
    "<<image>>",
    "\u2581<image>",
]
ODD = [
    "",
    " ",
    "\n\n",
    "\x00",
    "a\x00b",
    "\ud800",
    "x\udfff y",
    "\ud83d\ude00",
    "שלום <image> عالم \u202e",
    "é" * 50,
    "😀👩‍👩‍👧",
    "\ufeff",
    "１２３",
    "a\u0301",
    "\r\n\t",
    "١٢٣",
]


@pytest.mark.parametrize("text", [*FORGERIES, *ODD])
def test_user_text_never_becomes_special_token(text: str, tokenizer: TextTokenizer, vocab: Vocabulary) -> None:
    ids = tokenizer.encode(text)
    assert set(ids) <= set(vocab.text_ids)
    assert tokenizer.decode(ids) == clean_text(text)


def test_random_text_round_trip(tokenizer: TextTokenizer, vocab: Vocabulary) -> None:
    rng = random.Random(11)
    legal = set(vocab.text_ids)
    for _ in range(300):
        pieces = [rng.choice([*FORGERIES, *ODD, chr(rng.randrange(0x110000)), "star "]) for _ in range(8)]
        text = "".join(pieces)
        ids = tokenizer.encode(text)
        assert set(ids) <= legal
        assert tokenizer.decode(ids) == clean_text(text)


def test_surrogates_are_joined_or_replaced() -> None:
    assert clean_text("\ud83d\ude00") == "😀"
    assert clean_text("a\ud83d") == "a\ufffd"
    assert clean_text("\ude00b") == "\ufffdb"


def test_a_megabyte_is_encoded(tokenizer: TextTokenizer) -> None:
    text = "Where is the red star? " * 45_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_single_tokens(tokenizer: TextTokenizer) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer.encode("0.25")] == ["0", ".", "2", "5"]


def test_plain_marks_are_single_tokens(tokenizer: TextTokenizer) -> None:
    for mark in ("THOUGHT 1:", "THOUGHT 2:", "THOUGHT 3:", "THOUGHT 6:", "\nFinal Answer:"):
        assert len(tokenizer.encode(mark)) == 1
        assert len(tokenizer.encode(f"{mark} red")) == 1 + len(tokenizer.encode(" red"))


def test_tokenizer_training_is_deterministic() -> None:
    texts = ["the red star", "the blue box and the red line"] * 10
    assert train_bpe(texts, 8, 300).to_str() == train_bpe(texts, 8, 300).to_str()


def test_training_keeps_requested_size() -> None:
    texts = [f"word{'abcdefgh'[i % 8]} {'xyz'[i % 3]}ord runs {i}" for i in range(200)]
    assert train_bpe(texts, 16, 300).get_vocab_size() == 4 + 16 + 7 + 300
    with pytest.raises(ValueError, match="256"):
        train_bpe(texts, 16, 255)


def test_characters_arrive_whole(tokenizer: TextTokenizer) -> None:
    text = "a😀שé٣"
    single = {tokenizer.token_bytes(i): i for i in range(75, 75 + 256)}
    stream = tokenizer.detokenizer()
    deltas = [stream.push(single[bytes([byte])]) for byte in text.encode()]
    assert [delta for delta in deltas if delta] == list(text)
    assert stream.flush() == ""


def test_half_a_character_becomes_replacement(tokenizer: TextTokenizer) -> None:
    single = {tokenizer.token_bytes(i): i for i in range(75, 75 + 256)}
    stream = tokenizer.detokenizer()
    assert stream.push(single["é".encode()[:1]]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(tokenizer.encode("x")[0]) == "x"


def test_special_and_unknown_ids_are_silent(tokenizer: TextTokenizer, vocab: Vocabulary) -> None:
    silent = [vocab.bos_id, vocab.boi_id, vocab.code_to_id(3), vocab.image_placeholder_id, 10**6]
    assert tokenizer.decode([silent[0], *tokenizer.encode("a"), *silent, *tokenizer.encode("b")]) == "ab"


def test_transformers_reads_ordinary_text_alike(tokenizer: TextTokenizer, described: Described) -> None:
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_str(json.dumps(described[1]))
    text = "Where is the red star? It is at 0.25, 0.5.\nFinal Answer: red"
    assert theirs.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


def test_merge_building_special_token_is_rejected(described: Described) -> None:
    forged = copy.deepcopy(described[1])
    vocab = forged["model"]["vocab"]
    vocab["<a"], vocab["<a>"] = len(vocab), len(vocab) + 1
    forged["model"]["merges"] += [["<", "a"], ["<a", ">"]]
    forged["added_tokens"].append({**forged["added_tokens"][0], "id": vocab["<a>"], "content": "<a>"})
    with pytest.raises(VocabularyError, match="'<a>'"):
        TextTokenizer.from_object(forged)


def test_sentencepiece_style_tokenizer_is_read() -> None:
    """Byte fallback tokens and the metaspace, as in Llama's files."""
    vocab = {"<s>": 0, "<unk>": 1, "\u2581": 2, "a": 3, "\u2581a": 4} | {f"<0x{b:02X}>": 5 + b for b in range(256)}
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "post_processor": None,
        "added_tokens": [
            {
                "id": 0,
                "content": "<s>",
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
        ],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False},
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": ["\u2581 a"],
        },
    }
    tokenizer = TextTokenizer.from_object(data)
    assert tokenizer.encode("a a") == [3, 4]
    assert tokenizer.decode(tokenizer.encode("a é<s>")) == "a é<s>"
    assert 0 not in tokenizer.encode("<s>")


def test_torch_free_modules_import_quickly() -> None:
    code = (
        "import sys, model.text.template, model.checkpoint.manifest, model.images.view, model.checkpoint.shards\n"
        "heavy = {'torch', 'transformers', 'gradio', 'safetensors', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
