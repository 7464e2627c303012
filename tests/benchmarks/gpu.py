"""What one GPU does with a 7B: a random bf16 model of Chameleon's shape, measured part by part.

    sh scripts/gpu_report.sh [--out FOLDER] [--dry]

Parts run in order of value. Each has a time limit of its own, a failure ends only its part, and the results are written
after each, so a run that is cut short keeps what it has. `--dry` runs the same code with tiny shapes on a CPU. Needs
torch, transformers and this package's own imports; no network.

Written are `gpu.json`, and `gpu.md` with the rows for docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.nets import fused
from model.nets.attention import CausalAttention
from model.nets.paged_attention import has_kernel
from model.nets.transformer import Transformer
from model.paging import pages_of
from tests.benchmarks import limit
from tests.benchmarks.gpu_parts.report import table
from tests.benchmarks.gpu_parts.swap import swap
from tests.benchmarks.gpu_parts.training import lora_perpo, lora_pesft
from tests.model.sparse import chameleon_config, sparse_checkpoint

Result = dict[str, Any]
DRY_PATIENCE = 20  # times a part's limit, for a busy CPU


@dataclass
class Rig:
    """The machine, the shapes to measure, and the loaded model."""

    device: str
    dry: bool
    folder: Path
    loaded: LoadedCheckpoint | None = None
    bandwidth: float | None = None  # bytes a second of a copy, read and written

    @property
    def model(self) -> LoadedCheckpoint:
        """Loaded by the part `load`, and filled with random weights there."""
        assert self.loaded is not None, "the part `load` failed"
        return self.loaded

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall-clock time of `work`, the device's included."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def peak(self, work: Callable[[], object]) -> int | None:
        """The most bytes allocated on the device during `work`."""
        if self.device != "cuda":
            work()
            return None
        torch.cuda.reset_peak_memory_stats()
        work()
        self.wait()
        return torch.cuda.max_memory_allocated()


def load(rig: Rig) -> Result:
    """Load a folder with the real headers as serving does, then fill in random weights."""
    config = chameleon_config(2, width=128, vocab_size=8_704) if rig.dry else chameleon_config()
    config = replace(config, transformer=replace(config.transformer, max_position_embeddings=16_384))
    if rig.dry:
        vq = replace(config.vq, resolution=64, base_channels=32, channel_multiplier=(1,) * 5, num_res_blocks=1)
        config = replace(config, vq=vq)
    sparse_checkpoint(rig.folder / "sparse", config)
    found: list[LoadedCheckpoint] = []

    def work() -> None:
        found.append(load_checkpoint(rig.folder / "sparse", device=rig.device, dtype=torch.bfloat16))

    times: list[float] = []
    peak = rig.peak(lambda: times.append(rig.seconds(work)))
    rig.loaded = loaded = found[0]
    randomise(loaded.transformer, loaded.vq)
    weights = sum(p.nbytes for p in (*loaded.transformer.parameters(), *loaded.vq.parameters()))  # type: ignore[union-attr]
    return {"s": times[0], "weights_bytes": weights, "peak_over_weights_bytes": peak and peak - weights}


@torch.no_grad()
def randomise(*modules: torch.nn.Module | None) -> None:
    """Small normal weights, norms of one: enough for finite numbers at full speed."""
    for module in modules:
        for name, parameter in () if module is None else module.named_parameters():
            norm = "norm" in name
            parameter.fill_(0.0 if name.endswith("bias") else 1.0) if norm else parameter.normal_(0.0, 0.02)


def equality(rig: Rig) -> Result:
    """Greedy tokens of the engine in fp32, 4 layers, against one whole forward for each token."""
    config = replace(rig.model.config.transformer, num_layers=2 if rig.dry else 4)
    with torch.device(rig.device):
        transformer = Transformer(config).eval().requires_grad_(False)
    randomise(transformer)
    new, prompt = (8, 16) if rig.dry else (48, 64)
    loaded = rig.model
    engine = Engine(transformer, loaded.vocab, loaded.template, num_slots=4, context_len=512, speculation=0)
    generator = torch.Generator().manual_seed(0)
    text = torch.tensor(loaded.template.text_legal_ids())
    prompts = [text[torch.randint(len(text), (prompt,), generator=generator)].tolist() for _ in range(4)]
    params = SamplingParams(temperature=0.0, max_new_tokens=new, max_images=0)
    ours = [one.token_ids for one in engine.generate(prompts, params)]
    legal = text[text != loaded.vocab.boi_id].to(rig.device)
    same = total = 0
    for ids, response in zip(prompts, ours, strict=True):
        given = list(ids)
        for token in response:
            same, total = same + (naive(transformer, given, legal) == token), total + 1
            given.append(token)  # ours, so that one near tie costs one token
    return {"tokens": total, "equal": same}


@torch.no_grad()
def naive(transformer: Transformer, ids: list[int], legal: Tensor) -> int:
    """The likeliest legal token after these, by one forward over all of them."""
    given = torch.tensor([ids], device=legal.device)
    hidden = transformer(given, torch.arange(len(ids), device=legal.device)[None], CausalAttention())
    return int(legal[transformer.logits(hidden[0, -1])[legal].argmax()])


def copy_bandwidth(rig: Rig) -> Result:
    """Bytes a second that a copy reads and writes, the bound of a decode step."""
    source = torch.empty(1 << (20 if rig.dry else 32), dtype=torch.uint8, device=rig.device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = min(rig.seconds(lambda: target.copy_(source)) for _ in range(5))
    rig.bandwidth = 2 * source.nbytes / best
    return {"gb_s": rig.bandwidth / 1e9}


def decode(rig: Rig) -> Result:
    """Tokens a second by rows and positions, kernels a step, and the share of the copy's bandwidth."""
    found: Result = {}
    rows = (1, 2) if rig.dry else (1, 4, 16, 32)
    lengths = (32,) if rig.dry else (500, 2_048, 8_000)
    for length in lengths:
        for batch in rows:
            name = f"{batch} x {length}"
            try:
                found[name] = _decode(rig, batch, length)
            except torch.cuda.OutOfMemoryError:
                found[name] = {"error": "does not fit"}
            if rig.device == "cuda":
                torch.cuda.empty_cache()
    return found


def _decode(rig: Rig, batch: int, length: int, steps: int = 48, paged: bool | None = None, **how: bool) -> Result:
    loaded = rig.model
    steps = 4 if rig.dry else steps
    engine = text_engine(rig, batch, length + 2 * steps + 16, paged, **how)
    prompt = random_text(rig, length)
    params = SamplingParams(temperature=1.0, max_new_tokens=2 * steps + 8, max_images=0)
    for row in range(batch):
        engine.add_request(prompt, replace(params, seed=row), request_id=str(row))
    for _ in range(4):  # admit, prefill, warm up
        engine.step()
    seconds = rig.seconds(lambda: [engine.step() for _ in range(steps)])
    config = loaded.config.transformer
    kv = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2 * (length + steps / 2) * batch
    moved = (engine.num_weight_bytes - loaded.transformer.model.embed_tokens.weight.nbytes + kv) * steps / seconds
    result: Result = {"tokens_s": batch * steps / seconds, "ms_a_step": 1_000 * seconds / steps}
    if rig.bandwidth:
        result["bandwidth_share"] = moved / rig.bandwidth
    if rig.device == "cuda":
        result["kernels_a_step"] = kernels(engine)
    return result


def kernels(engine: Engine) -> float:
    """Kernels launched by a decode step, on average of four."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(4):
            engine.step()
        torch.cuda.synchronize()
    return len([event for event in seen.events() if "Mem" not in event.name]) / 4


def text_engine(rig: Rig, slots: int, context: int, paged: bool | None = None, *, graphs: bool = True) -> Engine:
    """An engine that never draws, with keys and values in pages or not; None: as it would be served."""
    loaded = rig.model
    paged = kernel(rig) if paged is None else paged
    engine = Engine(
        loaded.transformer,
        loaded.vocab,
        loaded.template,
        num_slots=slots,
        context_len=context,
        admissions_per_step=slots,
        num_pages=slots * pages_of(context) if paged else None,
        graphs=graphs,
    )
    engine.warm_up()
    return engine


def graphs(rig: Rig) -> Result:
    """Steps of 1 and 16 rows of 2,048 positions as served, without fused kernels, and without CUDA graphs either."""
    if rig.device == "cuda" and not kernel(rig):
        return {"kernel": False}
    rows, length = ((1, 2), 32) if rig.dry else ((1, 16), 2_048)
    found: Result = {"fused": rig.device == "cuda" and fused.works(torch.device("cuda"), torch.bfloat16)}
    for n in rows:
        found[f"{n} served"] = _decode(rig, n, length, paged=True, graphs=True)
        with patch.object(fused, "works", return_value=False):
            found[f"{n} unfused"] = _decode(rig, n, length, paged=True, graphs=True)
            found[f"{n} plain"] = _decode(rig, n, length, paged=True, graphs=False)
    return found


def pages(rig: Rig) -> Result:
    """Tokens a second of 16 rows of 2,048 positions in pages and in whole contexts, and equal greedy tokens of one."""
    if rig.device == "cuda" and not kernel(rig):
        return {"kernel": False}
    rows, length, new = (2, 32, 8) if rig.dry else (16, 2_048, 48)
    params = SamplingParams(temperature=0.0, max_new_tokens=new, max_images=0)
    engines = (text_engine(rig, 1, length + new, paged) for paged in (True, False))
    first, second = (engine.generate([random_text(rig, length)], params)[0].token_ids for engine in engines)
    paged, whole = (_decode(rig, rows, length, paged=paged)["tokens_s"] for paged in (True, False))
    found = {"kernel": kernel(rig), "tokens_s": paged, "ratio": paged / whole}
    return found | {"tokens": len(second), "equal": sum(a == b for a, b in zip(first, second, strict=False))}


def kernel(rig: Rig) -> bool:
    """Whether pages are read by FlashAttention."""
    config = rig.model.config.transformer
    shape = (config.head_dim, config.num_heads // config.num_kv_heads)
    return has_kernel(torch.device(rig.device), torch.bfloat16, *shape)


def random_text(rig: Rig, length: int) -> list[int]:
    ids = torch.tensor(rig.model.template.text_legal_ids()[:256])
    return ids[torch.randint(len(ids), (length,), generator=torch.Generator().manual_seed(1))].tolist()


def against_generate(rig: Rig) -> Result:
    """One row of 500 positions: transformers' `generate` in the same process."""
    from transformers import ChameleonForConditionalGeneration
    from transformers.utils import logging

    warnings.filterwarnings("ignore")
    new, length = (4, 32) if rig.dry else (64, 500)
    logging.set_verbosity_error()
    stored = ChameleonForConditionalGeneration.from_pretrained(rig.folder / "sparse", dtype=torch.bfloat16)
    peer = [stored.to(rig.device).eval()]
    randomise(peer[0])
    ids = torch.tensor([random_text(rig, length)], device=rig.device)
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": True, "pad_token_id": 1}

    def work() -> None:
        peer[0].generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)

    work()
    theirs = new / rig.seconds(work)
    peer.clear()
    del stored
    ours = _decode(rig, 1, length, steps=new)["tokens_s"]
    return {"tokens_s": theirs, "ours_tokens_s": ours, "ratio": ours / theirs}


def syncs(rig: Rig) -> Result:
    """Blocking waits for the device in 200 decode steps of 16 rows."""
    steps, rows = (4, 2) if rig.dry else (200, 16)
    engine = text_engine(rig, rows, 1_024)
    params = SamplingParams(temperature=1.0, max_new_tokens=steps + 8, max_images=0)
    for row in range(rows):
        engine.add_request(random_text(rig, 64), replace(params, seed=row), request_id=str(row))
    for _ in range(4):
        engine.step()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if rig.device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                engine.step()
        finally:
            if rig.device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    return {"steps": steps, "syncs": sum("synchroniz" in str(one.message) for one in seen)}


def image_decode(rig: Rig) -> Result:
    """Milliseconds to decode one image and four at once."""
    vq = rig.model.vq
    assert vq is not None
    side = vq.config.resolution // 16
    found: Result = {}
    for count in (1,) if rig.dry else (1, 4):
        codes = torch.randint(vq.config.num_embeddings, (count, side * side), device=rig.device)
        work = partial(vq.decode, codes)
        with torch.no_grad():
            work()
            found[f"ms_{count}"] = 1_000 * min(rig.seconds(work) for _ in range(1 if rig.dry else 5))
    return found


def swapping(rig: Rig) -> Result:
    """A second checkpoint of the same size beside an engine that writes."""
    engine = text_engine(rig, 2, 1_024)
    params = SamplingParams(temperature=1.0, max_new_tokens=32 if rig.dry else 900, max_images=0)

    def ask() -> None:
        for row in range(2):
            engine.add_request(random_text(rig, 64), replace(params, seed=row), request_id=str(row))

    return swap(rig.folder / "sparse", rig.device, engine, ask)


PARTS: dict[str, tuple[Callable[[Rig], Result], int]] = {  # and the limit in seconds, eight minutes in all
    "load": (load, 60),
    "bandwidth": (copy_bandwidth, 10),
    "equality": (equality, 30),
    "decode": (decode, 90),
    "generate": (against_generate, 50),
    "lora_pesft": (lambda rig: lora_pesft(rig.model, rig.device, dry=rig.dry), 50),
    "lora_perpo": (lambda rig: lora_perpo(rig.model, rig.device, dry=rig.dry), 50),
    "image": (image_decode, 15),
    "graphs": (graphs, 40),
    "syncs": (syncs, 20),
    "pages": (pages, 30),
    "swap": (swapping, 35),  # last: after its time limit it goes on loading
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu_report.sh", description="Measure a random 7B on one GPU.")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    parser.add_argument("--dry", action="store_true", help="tiny shapes, on the CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(all)")
    args = parser.parse_args(argv)
    if not args.dry and not torch.cuda.is_available():
        sys.stderr.write("no CUDA device: use --dry to run the same code with tiny shapes\n")
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    device = "cpu" if args.dry else "cuda"
    name = platform.processor() or platform.machine() if args.dry else torch.cuda.get_device_name()
    results: Result = {"machine": {"device": name, "torch": torch.__version__, "dry": args.dry}}
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(device, args.dry, Path(folder))
        for part, (run, seconds) in PARTS.items():
            if part not in args.parts and part != "load":
                continue
            try:
                with limit(DRY_PATIENCE * seconds if args.dry else seconds):
                    results[part] = run(rig)
            except Exception as error:
                results[part], failed = {"error": f"{type(error).__name__}: {error}"[:500]}, True
            if device == "cuda":
                torch.cuda.empty_cache()
            sys.stderr.write(f"{part}: {json.dumps(results[part])}\n")
            (args.out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
            (args.out / "gpu.md").write_text(table(results, PARTS))
    sys.stdout.write(table(results, PARTS))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
