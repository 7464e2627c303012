"""Two replicas on Ray against two engines in child processes, and how soon a killed replica is back.

    .venv/bin/python -m tests.benchmarks.scaling [--rounds 5] [--part rollouts]

The second part compares PeRPO's rollouts in two actors with those of the job's own engine, with one thread and two.

Starts a Ray cluster of its own (extra `ray`) and prints one JSON object a line, {name, ours, peer, ratio, unit}: ours
is Ray, the peer the same router over two child processes; each idles while the other one works. They serve the shipped
checkpoint on the CPU with one thread each, and as many traces at once as both have slots.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from model.checkpoint.checkpoint import load_checkpoint
from model.checkpoint.shards import SHIPPED
from model.cluster.engine import RayEngine, RayReplica
from model.cluster.replicas import Replicas
from model.engine.client import EngineProcess
from model.engine.messages import Emitted, Finished, GenerationRequest, SamplingParams
from tests.cluster.nodes import Nodes
from tests.training.job_helpers import make_context
from training.perpo.loading import load_prompts, make_sampler, rollout_engine
from training.perpo.rollout import Prompt, Sampler
from training.spec.hyperparameters import PeRPOHyperparameters

MODEL = "nano-omni-r1"
TRACES = 32
TOKENS = 160
ASKED = 300  # round trips, for their median
PROMPTS = 16  # of a round of rollouts, 8 each


async def main(rounds: int) -> None:
    ray: Replicas = RayEngine(num_replicas=2, device="cpu", retry=True)
    plain = Replicas([EngineProcess({}, device="cpu", marks=True) for _ in range(2)], retry=True)
    try:
        for engine in (ray, plain):
            await engine.start()
            await until(lambda engine=engine: engine.status().phase == "ready")  # type: ignore[misc]
            await engine.load(MODEL, str(SHIPPED / MODEL), 1)
            await until(lambda engine=engine: engine.is_whole)  # type: ignore[misc]
            await work(engine, 0)
        await measure(ray, plain, rounds)
    finally:
        await ray.close()
        await plain.close()


async def measure(ray: Replicas, plain: Replicas, rounds: int) -> None:
    pairs = [(await work(ray, n), await work(plain, n)) for n in range(rounds)]
    for place, (name, unit) in enumerate((("tokens_a_second", "tokens/s"), ("cpu_a_token", "ms"))):
        ours, peer = (statistics.median(one[place] for one in side) for side in zip(*pairs, strict=True))
        row(name, ours, peer, unit, ours / peer if place == 0 else peer / ours)
    trips = [(await round_trips(ray), await round_trips(plain)) for _ in range(rounds)]
    row("round_trip_p50", *(statistics.median(sum(side, [])) for side in zip(*trips, strict=True)), "ms")  # noqa: RUF017
    first = [(await first_texts(ray), await first_texts(plain)) for _ in range(rounds)]
    row("first_text_p50", *(statistics.median(sum(side, [])) for side in zip(*first, strict=True)), "ms")  # noqa: RUF017
    back = [await recovery_s(ray) for _ in range(rounds)]
    row("recovery", statistics.median(back), None, "s")
    row("recovery_worst", max(back), None, "s")
    row("load_average", os.getloadavg()[0], None, "processes")


def ask(name: str, seed: int) -> GenerationRequest:
    sampling = SamplingParams(temperature=1.0, seed=seed, max_new_tokens=TOKENS)
    return GenerationRequest(name, MODEL, "What colour is the circle?", sampling=sampling)


async def work(engine: Replicas, number: int) -> tuple[float, float]:
    """Tokens a second of `TRACES` traces at once, and CPU milliseconds a token of all processes, this one included.

    The latter hardly depends on what else the machine does.
    """

    async def tokens(seed: int) -> int:
        outputs = [output async for output in engine.generate(ask(f"{number}-{seed}", seed))]
        last = outputs[-1]
        assert isinstance(last, Finished), last
        return last.usage["completion_tokens"]

    began, cpu = time.perf_counter(), cpu_s(engine)
    count = sum(await asyncio.gather(*(tokens(seed) for seed in range(TRACES))))
    return count / (time.perf_counter() - began), 1000 * (cpu_s(engine) - cpu) / count


def cpu_s(engine: Replicas) -> float:
    """CPU seconds of this process and those of an engine so far."""
    pids = [engine.link.pid] if isinstance(engine, RayEngine) else [e.pid for e in engine._engines]  # type: ignore[attr-defined]
    own = [psutil.Process(pid) for pid in pids]
    trees = [psutil.Process(), *own, *(child for process in own for child in process.children(recursive=True))]
    return sum(sum(process.cpu_times()[:2]) for process in trees)


async def round_trips(engine: Replicas) -> list[float]:
    """Milliseconds from the server to an idle worker and back."""
    found = []
    for _ in range(ASKED):
        began = time.perf_counter()
        await engine._engines[0].abort("nobody")
        found.append(1000 * (time.perf_counter() - began))
    return found


async def first_texts(engine: Replicas) -> list[float]:
    """Milliseconds to the first text of one trace at a time."""
    found = []
    for seed in range(20):
        began = time.perf_counter()
        async for output in engine.generate(ask(f"first-{seed}", seed)):
            if isinstance(output, Emitted) and output.event.type.endswith(".delta"):
                found.append(1000 * (time.perf_counter() - began))
                break
        await engine.abort(f"first-{seed}")
    return found


async def recovery_s(engine: Replicas) -> float:
    """Seconds from the death of an actor until all replicas serve the checkpoint again."""
    victim = engine._engines[0]
    assert isinstance(victim, RayReplica)
    assert victim.pid is not None
    began = time.perf_counter()
    os.kill(victim.pid, signal.SIGKILL)
    await until(lambda: not engine.is_whole)
    await until(lambda: engine.is_whole)
    return time.perf_counter() - began


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def rollouts(rounds: int) -> None:
    """Rounds of sampling with new weights: two actors in turn with the job's own engine, with one and two threads."""
    nodes = Nodes()
    os.environ.update(nodes.variables)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.callback(nodes.close)
        spec = {"method": "perpo", "data": {"source": "unitasks", "num_samples": 1_000}}
        ctx = make_context(Path(folder) / "jobs" / "job", spec, SHIPPED / MODEL)
        base, hp = load_checkpoint(SHIPPED / MODEL), PeRPOHyperparameters(rollout_actors=2)
        prompts = load_prompts(ctx, base)
        engine = stack.enter_context(rollout_engine(ctx, base, prompts, hp))
        actors, own = make_sampler(base, prompts, hp, engine), make_sampler(base, prompts, hp)
        sides = {"two_actors": (actors, 1), "one_thread": (own, 1), "two_threads": (own, 2)}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for number in range(rounds + 1):
            chosen = prompts.take(range(PROMPTS * number, PROMPTS * (number + 1)))
            for name, (sampler, threads) in sides.items():
                torch.set_num_threads(threads)
                found[name].append(sampled(sampler, chosen, number))
        for place, (what, unit) in enumerate((("tokens_a_second", "tokens/s"), ("cpu_a_token", "ms"))):
            ours, *peers = (statistics.median(one[place] for one in side[1:]) for side in found.values())
            for peer, name in zip(peers, list(sides)[1:], strict=True):
                row(f"rollouts_{what}_against_{name}", ours, peer, unit, ours / peer if place == 0 else peer / ours)
        torch.set_num_threads(1)
        one = hp.model_copy(update={"max_new_tokens": 1})
        waits = [make_sampler(base, prompts, one, there) for there in (engine, None)]
        pairs = [[first_token_s(sampler, prompts.take([n]), n) for sampler in waits] for n in range(ASKED // 10)]
        row("rollouts_broadcast", *(1000 * statistics.median(side) for side in zip(*pairs, strict=True)), "ms")
    row("load_average", os.getloadavg()[0], None, "processes")


def first_token_s(sampler: Sampler, prompts: list[Prompt], step: int) -> float:
    """Seconds of a step of one token: the weights' way to where it is drawn."""
    began = time.perf_counter()
    sampler.sample(prompts, seed=0, step=step)
    return time.perf_counter() - began


def sampled(sampler: Sampler, prompts: list[Prompt], step: int) -> tuple[float, float]:
    """Tokens a second, and CPU milliseconds a token of this process and its children, the nodes among them."""

    def cpu() -> float:
        trees = [psutil.Process(), *psutil.Process().children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in trees)

    began, used = time.perf_counter(), cpu()
    groups = sampler.sample(prompts, seed=0, step=step)
    elapsed, used = time.perf_counter() - began, cpu() - used
    count = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    return count / elapsed, 1000 * used / count


def row(name: str, ours: float, peer: float | None, unit: str, ratio: float | None = None) -> None:
    if ratio is None and peer is not None:
        ratio = peer / ours
    shown = {"ours": round(ours, 2), "peer": peer and round(peer, 2), "ratio": ratio and round(ratio, 3), "unit": unit}
    sys.stdout.write(json.dumps({"name": name, **shown}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure replicas on Ray.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=("replicas", "rollouts"), help="only this part")
    arguments = parser.parse_args()
    if arguments.part != "rollouts":
        asyncio.run(main(arguments.rounds))
    if arguments.part != "replicas":
        rollouts(arguments.rounds)
