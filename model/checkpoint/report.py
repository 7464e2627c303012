"""What a folder is, what it lacks, and what it needs: the report of `omni-r1 doctor FOLDER`.

Reads JSON and safetensors headers only, never the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from model.checkpoint.checkpoint import validate_checkpoint
from model.checkpoint.manifest import FILE, Manifest
from model.checkpoint.memory import WIDTHS, memory_needs, parameters, spread_needs, training_needs
from model.checkpoint.parts import is_adapter, parts_of, weights_of
from model.checkpoint.shards import PICKLES, CheckpointError, read_entries, require_data, unwrapped
from model.config import CHAMELEON_CONTEXT, ModelConfig
from model.quantisation import QuantKind

MOST_TRACES = 16
DEVICES = (2, 4, 8)
Kind = Literal["checkpoint", "adapter", "wrapped", "meta", "pickles", "unknown"]


def folder_report(
    folder: Path, *, device: str, dtype: str, memory: int, quant: QuantKind | None = None
) -> dict[str, Any]:
    """The report for a device with ``memory`` bytes; its keys are those of docs/cli.md.

    A folder that cannot be served has a ``problem`` (``code``, ``detail``) and no figures.
    """
    report: dict[str, Any] = {"path": str(folder), "kind": kind_of(folder), "problem": None}
    try:
        for part in parts_of(folder).folders:
            require_data(part)
        manifest = validate_checkpoint(folder, hashes=False, values=False)
    except CheckpointError as error:
        return {**report, "problem": {"code": error.code, "detail": error.detail}, "fits": False}
    weights = weights_of(folder)
    config, entries = ModelConfig.read(weights), read_entries(weights)
    needs = memory_needs(config, entries, width=WIDTHS[dtype], device=device, quant=quant)
    longest, share = needs.max_context(memory), needs.share(memory)
    own = min(config.transformer.context_len, longest)
    served = min(needs.default_context(config.transformer.context_len, share), longest)
    traces = min(MOST_TRACES, needs.kv_budget(share, served) // needs.kv_of(own)) if own else 0
    tokens = needs.kv_budget(share, served) // needs.kv_per_token if needs.paged else traces * own
    return {
        **report,
        "name": manifest.name,
        "licence": manifest.licence,
        "template": manifest.template,
        "parameters": parameters(config.transformer),
        "context": config.transformer.context_len,
        "image": {"pixels": config.vq.resolution, "tokens": config.vq.codes_per_image + 2},
        "missing": _missing(weights, manifest),
        "device": device,
        "dtype": dtype,
        "quant": quant,
        "memory_bytes": memory,
        "weights_bytes": needs.weights,
        "loading_peak_bytes": needs.loading_peak,
        "kv_bytes_per_token": needs.kv_per_token,
        "max_context": longest,
        "served_context": served,
        "concurrent_traces": traces,
        "kv_tokens": min(MOST_TRACES * served, tokens),
        "fits": longest >= CHAMELEON_CONTEXT,
        "fits_twice": share < memory,
        "twice_kv_mb": needs.twice_kv(memory, own) >> 20 if own else 0,
        "train": training_needs(config, entries, width=WIDTHS[dtype], device=device),
        "train_full_pesft_per_device": {
            str(count): spread_needs(config, entries, devices=count, width=WIDTHS[dtype], device=device)
            for count in DEVICES
        },
    }


def kind_of(folder: Path) -> Kind:
    """What a folder looks like, also when it is not usable."""
    if is_adapter(folder):
        return "adapter"
    if (folder / "config.json").is_file():
        try:
            wrapped = any(unwrapped(name) != name for name in read_entries(folder))
        except CheckpointError as error:
            return "pickles" if error.code == "pickle_only" else "checkpoint"
        return "wrapped" if wrapped else "checkpoint"
    if (folder / "models").is_dir() and (folder / "tokenizer").is_dir():
        return "meta"
    if folder.is_dir() and any(path.suffix in PICKLES for path in folder.iterdir()):
        return "pickles"
    return "unknown"


def _missing(folder: Path, manifest: Manifest) -> list[str]:
    """What a usable checkpoint lacks, one sentence each."""
    names = [unwrapped(name) for name in read_entries(folder)]
    lacks = []
    if not any(name.startswith("model.vqmodel.encoder.") for name in names):
        lacks.append("the VQ encoder: it reads no images")
    if not any(name.startswith("model.vqmodel.decoder.") for name in names):
        lacks.append("the VQ decoder: it answers in text only")
    if not (folder / FILE).is_file():
        lacks.append(f"{FILE}: its files have no hashes to be checked against")
    if not (folder / "generation_config.json").is_file():
        lacks.append("generation_config.json: it answers greedily by default")
    if manifest.perception is None or manifest.perception.energy_p95 is None:
        lacks.append("a calibration of the perception reward: `omni-r1 calibrate` measures one")
    return lacks
