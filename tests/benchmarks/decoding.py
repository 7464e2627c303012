"""The engine's real step against transformers' `generate`: one row, sixteen rows, and a ragged queue of requests."""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from model.checkpoint.manifest import Manifest
from model.config import ModelConfig, TransformerConfig, VQConfig
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.nets.transformer import Transformer
from model.nets.vq import VQModel
from model.text.tokenizer import train_bpe
from tests.tiny import TEXTS

PROMPT, NEW = 80, 200  # tokens
SLOTS, REQUESTS, SHORTEST, LONGEST = 16, 64, 60, 330
Row = dict[str, Any]


def make_checkpoint(folder: Path) -> None:
    """Random weights of the nano shape; end-of-sequence cannot win, so that both sides write what they are told to."""
    tokenizer = train_bpe(TEXTS * 20, 512, text_vocab=1024)
    vocab_size = max(1610, tokenizer.get_vocab_size())
    shape = TransformerConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=688,
        num_layers=6,
        num_heads=8,
        num_kv_heads=2,
        head_dim=32,
        max_position_embeddings=768,
    )
    vq = VQConfig(
        resolution=64,
        base_channels=32,
        channel_multiplier=(1, 1, 2, 2),
        num_res_blocks=1,
        embed_dim=32,
        latent_channels=32,
        num_embeddings=512,
    )
    config = ModelConfig(shape, vq, tokenizer.get_vocab())
    transformer = Transformer(shape)
    transformer.init_weights(0)
    save_checkpoint(
        folder,
        config=config,
        transformer_state=transformer.state_dict(),
        vq_state=VQModel(vq).state_dict(),
        tokenizer=json.loads(tokenizer.to_str()),
        manifest=Manifest(name="nano-shape", template="plain", licence="MIT", description="Random weights."),
        dtype=torch.float32,
    )


@dataclasses.dataclass(frozen=True)
class TextOf:
    """The legal text of a benchmark: every id that `generate` may write, too, but the end."""

    ids: list[int]

    def text_legal_ids(self) -> list[int]:
        return self.ids


class Sides:
    """Both engines over one checkpoint, fp32 on the CPU."""

    def __init__(self, folder: Path, *, make: bool = True) -> None:
        if make:
            make_checkpoint(folder)
        self.loaded = load_checkpoint(folder)
        warnings.filterwarnings("ignore")
        from transformers import ChameleonForConditionalGeneration
        from transformers.utils import logging

        logging.set_verbosity_error()
        self.peer = ChameleonForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        vocab = self.loaded.vocab
        banned = {vocab.eos_id, vocab.boi_id, vocab.eoi_id, *vocab.code_ids}
        self.text_ids = [i for i in range(vocab.size) if i not in banned]
        self.prompts = [
            [vocab.bos_id, *random.Random(i).choices(list(vocab.text_ids), k=PROMPT - 1)] for i in range(REQUESTS)
        ]

    def engine(self, slots: int) -> Engine:
        """Ours, with begin-image and the end kept out as on the other side."""
        return Engine(self.loaded.transformer, self.loaded.vocab, TextOf(self.text_ids), num_slots=slots)

    def params(self, tokens: int, seed: int) -> SamplingParams:
        return SamplingParams(temperature=1.0, top_p=0.95, seed=seed, max_new_tokens=tokens, max_images=0)

    def generate(self, prompts: Sequence[list[int]], tokens: int) -> None:
        """Theirs: a batch of equal prompts, so many new tokens each."""
        ids = torch.tensor(prompts)
        vocab = self.loaded.vocab
        out = self.peer.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=True,
            temperature=1.0,
            top_p=0.95,
            top_k=0,
            repetition_penalty=1.0,
            eos_token_id=vocab.eos_id,
            pad_token_id=vocab.pad_id,
            bos_token_id=vocab.bos_id,
        )
        assert out.shape[1] == len(prompts[0]) + tokens


def our_decode(sides: Sides, rows: int) -> Callable[[], float]:
    """Milliseconds a step, prefill excluded."""
    engine = sides.engine(rows)

    def once() -> float:
        for row in range(rows):
            engine.add_request(sides.prompts[row], sides.params(NEW + rows, row), request_id=str(row))
        while engine.num_running < rows:
            engine.step()
        start = time.perf_counter()
        for _ in range(NEW - 1):
            engine.step()
        elapsed = time.perf_counter() - start
        for row in range(rows):
            engine.abort(str(row))
        return elapsed / (NEW - 1) * 1e3

    return once


def their_decode(sides: Sides, rows: int) -> Callable[[], float]:
    """Milliseconds a step: a whole run less one that only prefills and draws the first token."""

    def once() -> float:
        start = time.perf_counter()
        sides.generate(sides.prompts[:rows], 1)
        middle = time.perf_counter()
        sides.generate(sides.prompts[:rows], NEW)
        return ((time.perf_counter() - middle) - (middle - start)) / (NEW - 1) * 1e3

    return once


def wanted_tokens() -> list[int]:
    """New tokens of each of the 64 requests."""
    rng = random.Random(0)
    return [rng.randint(SHORTEST, LONGEST) for _ in range(REQUESTS)]


def our_serving(sides: Sides) -> Callable[[], float]:
    """Useful tokens a second through 16 slots."""
    engine, wanted = sides.engine(SLOTS), wanted_tokens()

    def once() -> float:
        start = time.perf_counter()
        completions = engine.generate(sides.prompts, [sides.params(n, i) for i, n in enumerate(wanted)])
        elapsed = time.perf_counter() - start
        assert [len(c.token_ids) for c in completions] == wanted
        return sum(wanted) / elapsed

    return once


def their_serving(sides: Sides) -> Callable[[], float]:
    """Useful tokens a second in batches of 16 in the order of arrival, each as long as its longest request."""
    wanted = wanted_tokens()

    def once() -> float:
        start = time.perf_counter()
        for first in range(0, REQUESTS, SLOTS):
            sides.generate(sides.prompts[first : first + SLOTS], max(wanted[first : first + SLOTS]))
        return sum(wanted) / (time.perf_counter() - start)

    return once


def compare(
    ours: Callable[[], float],
    peer: Callable[[], float],
    *,
    unit: str,
    more_is_better: bool,
    rounds: int,
    threads: Sequence[int],
) -> Row:
    """Each side's best thread count by one warm run each, then alternations at those; medians."""

    def run(side: Callable[[], float], count: int) -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return side()
        finally:
            torch.set_num_threads(before)

    best = max if more_is_better else min
    chosen = {}
    for name, side in (("ours", ours), ("peer", peer)):
        run(side, threads[0])
        tried = {count: run(side, count) for count in threads} if len(threads) > 1 else {threads[0]: 0.0}
        chosen[name] = best(tried, key=tried.__getitem__)
    measured: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        measured["ours"].append(run(ours, chosen["ours"]))
        measured["peer"].append(run(peer, chosen["peer"]))
    our_median, peer_median = statistics.median(measured["ours"]), statistics.median(measured["peer"])
    ratio = our_median / peer_median if more_is_better else peer_median / our_median
    return {
        "ours": round(our_median, 3),
        "peer": round(peer_median, 3),
        "ratio": round(ratio, 2),
        "unit": unit,
        "threads": chosen,
    }


def _decode_row(rows: int) -> Callable[..., Row]:
    def measure(sides: Sides, *, rounds: int, threads: Sequence[int]) -> Row:
        return compare(
            our_decode(sides, rows),
            their_decode(sides, rows),
            unit="ms/step",
            more_is_better=False,
            rounds=rounds,
            threads=threads,
        )

    return measure


def _serve_ragged(sides: Sides, *, rounds: int, threads: Sequence[int]) -> Row:
    return compare(
        our_serving(sides), their_serving(sides), unit="tokens/s", more_is_better=True, rounds=rounds, threads=threads
    )


ROWS: dict[str, Callable[..., Row]] = {
    "decode_b1": _decode_row(1),
    "decode_b16": _decode_row(16),
    "serve_ragged16": _serve_ragged,
}
