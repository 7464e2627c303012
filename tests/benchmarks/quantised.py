"""Decode steps with one byte a number (docs/gpu.md) against those without, on the shipped weights: CPU times of text.

.venv/bin/python -m tests.benchmarks int8_b1 int8_b16 fp8_b1 fp8_b16
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from model.checkpoint.checkpoint import load_checkpoint
from model.checkpoint.shards import SHIPPED
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.quantisation import QuantKind
from tests.benchmarks.decoding import Row, Sides

TOKENS = 60


def _engine(quant: QuantKind | None, slots: int) -> Engine:
    loaded = load_checkpoint(SHIPPED / "nano-omni-r1", quant=quant)
    return Engine(
        loaded.transformer, loaded.vocab, loaded.template, num_slots=slots, admissions_per_step=slots, speculation=0
    )


def _seconds_a_step(engine: Engine, prompt: list[int], rows: int) -> float:
    each = [SamplingParams(temperature=1.0, seed=seed, max_new_tokens=TOKENS, max_images=0) for seed in range(rows)]
    start, steps = time.thread_time(), engine.num_steps
    engine.generate([prompt] * rows, each)
    return (time.thread_time() - start) / (engine.num_steps - steps)


def step(sides: Sides, *, rounds: int, threads: Sequence[int], quant: QuantKind, rows: int) -> Row:
    """A step of `rows` sequences, with one thread, in alternation; medians."""
    loaded = load_checkpoint(SHIPPED / "nano-omni-r1")
    prompt = loaded.template.prompt_ids("What is it?", [])
    ours, peer = _engine(quant, rows), _engine(None, rows)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = [tuple(_seconds_a_step(engine, prompt, rows) for engine in (ours, peer)) for _ in range(rounds)]
    finally:
        torch.set_num_threads(before)
    mine, theirs = (statistics.median(side) * 1000 for side in zip(*pairs, strict=True))
    ratio = statistics.median(without / seconds for seconds, without in pairs)
    return {"ours": round(mine, 2), "peer": round(theirs, 2), "ratio": round(ratio, 2), "unit": "ms of CPU a step"}


ROWS: dict[str, Callable[..., Row]] = {
    "int8_b1": partial(step, quant="int8", rows=1),
    "int8_b16": partial(step, quant="int8", rows=16),
    "fp8_b1": partial(step, quant="fp8", rows=1),
    "fp8_b16": partial(step, quant="fp8", rows=16),
}
