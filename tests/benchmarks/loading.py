"""Memory and time to load a checkpoint for serving: the peak of the process against the bytes of the weights.

    .venv/bin/python -m tests.benchmarks.loading [--layers 32] [--dtype bf16] [--quant int8] [--server]

The folder has real headers of Chameleon's shape and zeros that take no room on the disk; 32 layers are the 7B, whose
16 GB must fit into memory. Prints one JSON object a line. `peak` is VmHWM of a fresh process less its resident memory
before the load; `weights` counts every tensor that stays. Ends with exit code 1 if the peak exceeds them by over 2 GB.

With `--server` a server of its own serves the folder, with keys and values of one context: its engine process may take
the weights and 2 GB, interpreter and libraries included, `/readyz` must show bytes that grow, and a trace a token. If
fp32 does not fit into this machine, a server must refuse it with the figures and exit code 2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from model.checkpoint.report import folder_report
from model.quantisation import QuantKind
from tests.benchmarks.serving import row
from tests.e2e.real_server import Server
from tests.model.sparse import chameleon_config, sparse_checkpoint

ALLOWED = 2_000_000_000
_LOAD = """
import json, sys, time
import torch
from model.checkpoint.checkpoint import load_checkpoint
from model.engine.engine import Engine

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

folder, dtype, quant = sys.argv[1:]
before, began = status("VmRSS"), time.perf_counter()
loaded = load_checkpoint(folder, dtype=getattr(torch, dtype), quant=quant or None)
vq = sum(tensor.nbytes for tensor in loaded.vq.state_dict().values())
engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=1, context_len=64, keep_parameters=False)
kept = engine.num_weight_bytes + vq
print(json.dumps({"weights": kept, "peak": status("VmHWM") - before, "s": time.perf_counter() - began}))
"""


def load(folder: Path, dtype: torch.dtype, quant: QuantKind | None = None) -> dict[str, float]:
    """Load a folder in a process of its own, as serving does: bytes of the weights, peak bytes, seconds."""
    name = str(dtype).removeprefix("torch.")
    command = [sys.executable, "-c", _LOAD, str(folder), name, quant or ""]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def peak_of(process: psutil.Process) -> int:
    """Its VmHWM in bytes; 0 if it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def serve(folder: Path, home: Path, dtype: str, quant: QuantKind | None) -> bool:
    """Serve the folder, ask for a few tokens and print what it took; whether all is as it must be."""
    report = folder_report(folder, device="cpu", dtype=dtype, memory=psutil.virtual_memory().total, quant=quant)
    context = report["context"] * report["kv_bytes_per_token"]
    settings = {"OMNI_R1_CHECKPOINT": str(folder), "OMNI_R1_DEVICE": "cpu", "OMNI_R1_DTYPE": dtype}
    settings |= {"OMNI_R1_KV_MB": str(-(-context >> 20) + 1)} | ({"OMNI_R1_QUANT": quant} if quant else {})
    server, began = Server(home, settings), time.perf_counter()
    try:
        server.start(ready=False)
        assert server.process is not None
        seen: list[int] = []
        with server.client() as client:
            while (state := client.readiness())["phase"] != "ready":
                if (loading := state["loading"]) is not None and loading["bytes_read"] != (seen or [0])[-1]:
                    seen.append(loading["bytes_read"])
                time.sleep(0.1)
            row("served_ready", time.perf_counter() - began, "s")
            began = time.perf_counter()
            trace = client.create_trace("What is this?", sampling={"temperature": 1.0, "max_new_tokens": 8})
            text = next(event for event in client.events(trace["id"]) if event.type in ("text.delta", "answer.delta"))
            row("served_first_text", time.perf_counter() - began, "s")
            sys.stderr.write(f"first text: {text.data}\n")
            client.cancel(trace["id"])
        peak = max(map(peak_of, server.children()))
        row("served_weights", report["weights_bytes"] / 1e9, "GB")
        row("served_peak", peak / 1e9, "GB")
        row("served_peak_over_weights", (peak - report["weights_bytes"]) / 1e9, "GB")
        # Read twice: checked, then loaded.
        falls = sum(later < earlier for earlier, later in itertools.pairwise(seen))
        row("served_progress_seen", len(seen), "count")
        return peak <= report["weights_bytes"] + ALLOWED and len(seen) > 2 and falls <= 1
    finally:
        server.kill()


def refused(folder: Path, home: Path) -> bool:
    """Whether a server refuses the folder in fp32 with the figures and exit code 2, without reading it."""
    server, began = Server(home, {"OMNI_R1_CHECKPOINT": str(folder), "OMNI_R1_DTYPE": "fp32"}), time.perf_counter()
    try:
        server.start(ready=False)
        assert server.process is not None
        code = server.process.wait(600)
    finally:
        server.kill()
    row("refused_fp32", time.perf_counter() - began, "s")
    (why,) = re.findall(r"loading its [\d.]+ GiB of weights takes [^\n]*", server.tail())[-1:] or [""]
    sys.stderr.write(f"exit code {code}: {why}\n")
    return code == 2 and "OMNI_R1_DTYPE=bf16 halves it" in why


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the memory of loading a checkpoint.")
    parser.add_argument("--layers", type=int, default=32, help="of Chameleon's shape (32)")
    parser.add_argument("--width", type=int, default=4096, help="(4096)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--quant", choices=("int8", "fp8"), help="form of the matrices (not quantised)")
    parser.add_argument("--server", action="store_true", help="serve it, instead of loading it in a process alone")
    args = parser.parse_args(argv)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    with tempfile.TemporaryDirectory() as parent:
        folder = sparse_checkpoint(Path(parent) / "sparse", chameleon_config(args.layers, width=args.width))
        if args.server:
            full = folder_report(folder, device="cpu", dtype="fp32", memory=psutil.virtual_memory().total)
            fits = full["loading_peak_bytes"] <= full["memory_bytes"]
            good = fits or refused(folder, Path(parent) / "refused")
            return 0 if serve(folder, Path(parent) / "home", args.dtype, args.quant) and good else 1
        found = load(folder, dtype, args.quant)
    row("load_weights", found["weights"] / 1e9, "GB")
    row("load_peak", found["peak"] / 1e9, "GB")
    row("load_peak_over_weights", (found["peak"] - found["weights"]) / 1e9, "GB")
    row("load_time", found["s"], "s")
    return 0 if found["peak"] <= found["weights"] + ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
