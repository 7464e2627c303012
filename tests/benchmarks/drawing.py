"""Drawing with guessed codes (docs/drawing.md) against one code a pass, on the shipped weights.

The seconds are CPU time of the thread that steps, but for `trace_b1`, which compares with transformers: the engine
alone, without decoded images.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import SHIPPED
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.images.codes import encode_images
from model.speculation import WINDOW
from tests.benchmarks.decoding import Row, Sides, compare
from training.studies.passes import family_tasks, means, passes_by_family

TASKS = 3  # of each family
IMAGES = 3  # of a trace


def _prompts(loaded: LoadedCheckpoint) -> list[list[int]]:
    assert loaded.vq is not None
    tasks = family_tasks(TASKS)
    questions = encode_images(loaded.vq, [task.image for task in tasks])
    return [
        loaded.template.prompt_ids(task.question, [tuple(codes)]) for task, codes in zip(tasks, questions, strict=True)
    ]


def _engine(loaded: LoadedCheckpoint, slots: int, window: int) -> Engine:
    return Engine(
        loaded.transformer,
        loaded.vocab,
        loaded.template,
        num_slots=slots,
        admissions_per_step=slots,
        speculation=window,
    )


def _seconds(engine: Engine, prompts: Sequence[list[int]]) -> float:
    start = time.thread_time()
    engine.generate(prompts, SamplingParams(temperature=0.0))
    return time.thread_time() - start


def trace_with_three_images(sides: Sides, *, rounds: int, threads: Sequence[int]) -> Row:
    """A trace of three images alone in the engine; the median over traces, alternating."""
    loaded = load_checkpoint(SHIPPED / "nano-omni-r1")
    prompts, eoi = _prompts(loaded), loaded.vocab.eoi_id
    ours, peer = _engine(loaded, 16, WINDOW), _engine(loaded, 16, 0)
    greedy = SamplingParams(temperature=0.0)
    chosen = [p for p in prompts if ours.generate([p], greedy)[0].token_ids.count(eoi) == IMAGES]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = [(_seconds(ours, [p]), _seconds(peer, [p])) for _ in range(rounds) for p in chosen]
    finally:
        torch.set_num_threads(before)
    return _row(pairs)


def sixteen_traces(sides: Sides, *, rounds: int, threads: Sequence[int]) -> Row:
    """All tasks through 16 slots: so many rows leave the least to gain."""
    loaded = load_checkpoint(SHIPPED / "nano-omni-r1")
    prompts = _prompts(loaded)
    ours, peer = _engine(loaded, 16, WINDOW), _engine(loaded, 16, 0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = [(_seconds(ours, prompts), _seconds(peer, prompts)) for _ in range(rounds)]
    finally:
        torch.set_num_threads(before)
    return _row(pairs)


def passes_an_image(sides: Sides, *, rounds: int, threads: Sequence[int]) -> Row:
    """Mean over the families."""
    loaded = load_checkpoint(SHIPPED / "nano-omni-r1")
    ours = means(passes_by_family(loaded, family_tasks(TASKS), window=WINDOW))["all"]
    codes = loaded.vocab.codes_per_image
    return {"ours": round(ours, 2), "peer": codes, "ratio": round(codes / ours, 2), "unit": "passes"}


def _row(pairs: Sequence[tuple[float, float]]) -> Row:
    ours, peer = (statistics.median(side) * 1000 for side in zip(*pairs, strict=True))
    ratio = statistics.median(without / seconds for seconds, without in pairs)
    return {"ours": round(ours, 1), "peer": round(peer, 1), "ratio": round(ratio, 2), "unit": "ms of CPU"}


def trace_b1(sides: Sides, *, rounds: int, threads: Sequence[int]) -> Row:
    """Traces of three images, one after the other, against `generate` with as many tokens of text for each."""
    shipped = Sides(SHIPPED / "nano-omni-r1", make=False)
    loaded, greedy = shipped.loaded, SamplingParams(temperature=0.0)
    engine, eoi = _engine(loaded, 1, WINDOW), loaded.vocab.eoi_id
    answered = [(prompt, engine.generate([prompt], greedy)[0].token_ids) for prompt in _prompts(loaded)]
    traces = [(prompt, len(ids)) for prompt, ids in answered if ids.count(eoi) == IMAGES]
    count = sum(length for _, length in traces)

    def ours() -> float:
        start = time.perf_counter()
        for prompt, _ in traces:
            engine.generate([prompt], greedy)
        return (time.perf_counter() - start) / count * 1e3

    def theirs() -> float:
        start = time.perf_counter()
        for prompt, length in traces:
            shipped.generate([prompt], length)
        return (time.perf_counter() - start) / count * 1e3

    return compare(ours, theirs, unit="ms/token", more_is_better=False, rounds=rounds, threads=threads)


ROWS = {
    "trace_b1": trace_b1,
    "trace_with_three_images": trace_with_three_images,
    "sixteen_traces": sixteen_traces,
    "passes_an_image": passes_an_image,
}
