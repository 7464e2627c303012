"""Memory and time to load a checkpoint for serving: the peak of the process against the bytes of the weights.

    .venv/bin/python -m tests.benchmarks.loading [--layers 32] [--dtype bf16] [--quant int8]

The folder has real headers of Chameleon's shape and zeros that take no room on the disk; 32 layers are the 7B, whose
16 GB must fit into memory. Prints one JSON object a line. `peak` is VmHWM of a fresh process less its resident memory
before the load; `weights` counts every tensor that stays. Ends with exit code 1 if the peak exceeds them by over 2 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from model.quantisation import QuantKind
from tests.benchmarks.serving import row
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the memory of loading a checkpoint.")
    parser.add_argument("--layers", type=int, default=32, help="of Chameleon's shape (32)")
    parser.add_argument("--width", type=int, default=4096, help="(4096)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--quant", choices=("int8", "fp8"), help="form of the matrices (not quantised)")
    args = parser.parse_args(argv)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    with tempfile.TemporaryDirectory() as parent:
        folder = sparse_checkpoint(Path(parent) / "sparse", chameleon_config(args.layers, width=args.width))
        found = load(folder, dtype, args.quant)
    row("load_weights", found["weights"] / 1e9, "GB")
    row("load_peak", found["peak"] / 1e9, "GB")
    row("load_peak_over_weights", (found["peak"] - found["weights"]) / 1e9, "GB")
    row("load_time", found["s"], "s")
    return 0 if found["peak"] <= found["weights"] + ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
