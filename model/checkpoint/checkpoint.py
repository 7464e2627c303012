"""Checkpoints on disk: atomic saves, validation, and loading into our modules.

Layout (HF's, so that transformers reads it too): ``config.json, generation_config.json, preprocessor_config.json,
processor_config.json, tokenizer.json, tokenizer_config.json, model.safetensors.index.json, model-lm.safetensors,
model-vq.safetensors, manifest.json, README.md``. Any other HF sharding and mixed dtypes are read as well. Pickles are
rejected: Meta's files go through :mod:`model.checkpoint.convert`.

The torch-free part (which tensors a folder holds, hashes, name resolution) is :mod:`model.checkpoint.shards`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint.atomic import replace_folder, staging_folder, sync_tree
from model.checkpoint.checks import EMBEDDING, HEAD, check_names, check_vq, skeleton
from model.checkpoint.hf_files import description_files, model_card
from model.checkpoint.manifest import Capabilities, GenerationDefaults, Manifest
from model.checkpoint.memory import VQ_PREFIX
from model.checkpoint.merge import Merge, require_finite_pairs
from model.checkpoint.parts import Parts, check_adapters, parts_of
from model.checkpoint.shards import (
    INDEX,
    CheckpointError,
    TensorEntry,
    header_entries,
    read_entries,
    resolve,
)
from model.checkpoint.tensors import Keep, iterate, read_tensors, scale_of
from model.config import ConfigError, ModelConfig, read_json
from model.nets.quantised import quantise_linears
from model.nets.transformer import Transformer
from model.nets.vq import VQModel
from model.quantisation import QuantKind
from model.text.template import Template, TemplateName
from model.text.tokenizer import TextTokenizer
from model.text.vocab import Vocabulary, VocabularyError

__all__ = [
    "CheckpointError",
    "LoadedCheckpoint",
    "load_checkpoint",
    "load_vq",
    "resolve",
    "save_checkpoint",
    "validate_checkpoint",
]

LM_FILE, VQ_FILE = "model-lm.safetensors", "model-vq.safetensors"


@dataclass
class LoadedCheckpoint:
    """A checkpoint in memory. ``vq`` is None without an encoder; ``vq.decoder`` is None if it cannot draw.

    ``folder`` holds tokenizer and VQ: its own, or that of its base if it is an adapter.
    """

    name: str
    folder: Path
    transformer: Transformer
    vq: VQModel | None
    vocab: Vocabulary
    tokenizer: TextTokenizer
    template: Template
    config: ModelConfig
    manifest: Manifest
    generation: GenerationDefaults

    @property
    def can_see(self) -> bool:
        """Whether questions may contain images."""
        return self.vq is not None

    @property
    def can_draw(self) -> bool:
        """Whether answers may contain images; otherwise begin-image is never legal."""
        return self.vq is not None and self.vq.decoder is not None


def load_checkpoint(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    vq: str | Path | None = None,
    template: TemplateName | None = None,
    context_len: int | None = None,
    quant: QuantKind | None = None,
    on_bytes: Callable[[int], None] = lambda _count: None,
) -> LoadedCheckpoint:
    """Load a checkpoint folder into modules in evaluation mode, without gradients.

    A LoRA adapter is merged into its base. Every tensor goes to ``device`` as it is read, so that loading takes little
    more memory than the weights. ``context_len`` replaces the config's longest context. ``on_bytes`` receives the bytes
    of each tensor of the file.

    The transformer takes ``dtype``; the VQ stays in fp32, so that codes do not depend on it. ``vq`` names another
    folder or safetensors file to take the VQ from (for checkpoints that were released without a decoder). ``quant``
    quantises the projections and the head as they are read; such a transformer serves and cannot be trained.

    Raises:
        CheckpointError: see its codes. :func:`validate_checkpoint` checks hashes and finiteness.
    """
    config, vocab, tokenizer, manifest, parts = _read_descriptions(Path(folder))
    folder = parts.weights
    entries = read_entries(folder)
    check_names(entries, config)
    merge = Merge(parts, entries)
    if context_len is not None:
        config = config.with_context(context_len)
    transformer = skeleton(lambda: _empty_transformer(config, quant))
    expected = transformer.state_dict()
    keep = Keep(device, dtype, quant, {name for name in expected if scale_of(name) in expected}, merge)
    state = read_tensors(folder, entries, [name for name in expected if name in entries], keep, on_bytes)
    _fit_state(state, config)
    if keep.quantises(HEAD) and scale_of(HEAD) not in state:  # the head is tied to the embedding
        state |= keep(HEAD, state[HEAD])
    transformer.load_state_dict(state, assign=True)
    del state, merge, keep
    if vq is None:
        vq_model = _build_vq(folder, entries, VQ_PREFIX, config, device, on_bytes)
    else:
        vq_model = load_vq(vq, config, device=device)
        # The borrowed VQ replaces what the files lack.
        capabilities = Capabilities(images_in_answer=vq_model.decoder is not None, images_in_question=True)
        manifest = replace(manifest, capabilities=capabilities)
    if vq_model is None or vq_model.decoder is None:
        capabilities = Capabilities(images_in_answer=False, images_in_question=vq_model is not None)
        manifest = replace(manifest, capabilities=capabilities)
    try:
        rendering = Template(template or _template_name(manifest), vocab, tokenizer)
    except ValueError as error:
        raise CheckpointError("unsupported", f"{folder}: {error}") from error
    return LoadedCheckpoint(
        name=manifest.name,
        folder=folder,
        transformer=transformer.eval().requires_grad_(False),
        vq=None if vq_model is None else vq_model.eval().requires_grad_(False),
        vocab=vocab,
        tokenizer=tokenizer,
        template=rendering,
        config=config,
        manifest=manifest,
        generation=GenerationDefaults.read(folder),
    )


def load_vq(source: str | Path, config: ModelConfig, *, device: str | torch.device = "cpu") -> VQModel:
    """Load the VQ, in fp32, from another folder or a safetensors file (names with or without ``model.vqmodel.``).

    Raises:
        CheckpointError: it is missing, incomplete, or of another shape.
    """
    source = Path(source)
    folder = source if source.is_dir() else source.parent
    entries = read_entries(source) if source.is_dir() else header_entries(source)
    prefix = VQ_PREFIX if any(name.startswith(VQ_PREFIX) for name in entries) else ""
    model = _build_vq(folder, entries, prefix, config, device)
    if model is None:
        raise CheckpointError("missing_tensor", f"{source} has no VQ encoder ({prefix}encoder.*)")
    return model


def validate_checkpoint(
    folder: str | Path,
    *,
    hashes: bool = True,
    values: bool = True,
    on_bytes: Callable[[int], None] = lambda _count: None,
) -> Manifest:
    """Validate a checkpoint without running the model; return the manifest.

    In this order: files and their hashes, config, vocabulary, tensor names and shapes, finite values. ``on_bytes``
    receives the bytes of each tensor whose values were checked.

    Raises:
        CheckpointError: the first problem, with the name of the file or tensor.
    """
    folder = Path(folder)
    config, _, _, manifest, parts = _read_descriptions(folder)
    entries = read_entries(parts.weights)
    if hashes:
        for part in parts.folders:
            Manifest.read(part).verify_hashes(part)
    check_names(entries, config)
    check_adapters(parts, entries)
    vq_names = {name.removeprefix(VQ_PREFIX) for name in entries if name.startswith(VQ_PREFIX)}
    if vq_names:
        check_vq(entries, VQ_PREFIX, config, draws=any(name.startswith("decoder.") for name in vq_names))
    elif manifest.capabilities.images_in_question and not manifest.derived:
        raise CheckpointError("missing_tensor", f"{VQ_PREFIX}encoder.conv_in.weight: the manifest promises an encoder")
    if manifest.capabilities.images_in_answer and not any(name.startswith("decoder.") for name in vq_names):
        raise CheckpointError("missing_tensor", f"{VQ_PREFIX}decoder.conv_in.weight: the manifest promises a decoder")
    GenerationDefaults.read(parts.weights)
    if values:
        require_finite_pairs(parts, entries)
        for name, tensor in iterate(parts.weights, entries, sorted(entries)):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise CheckpointError("not_finite", f"{name} holds NaN or infinite values")
            on_bytes(tensor.nbytes)
    return manifest


def save_checkpoint(
    folder: str | Path,
    *,
    config: ModelConfig,
    transformer_state: Mapping[str, Tensor],
    tokenizer: Mapping[str, Any] | str | Path,
    manifest: Manifest,
    vq_state: Mapping[str, Tensor] | None = None,
    vq_file: str | Path | None = None,
    generation: GenerationDefaults | Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = torch.bfloat16,
    extra_state: Mapping[str, Tensor] | None = None,
    card: str | None = None,
    write_extra: Callable[[Path], None] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint to a staging folder, sync and rename it: a killed save leaves nothing visible.

    Args:
        folder: final path; the parent is created.
        config: written with ``tie_word_embeddings: false``.
        transformer_state: state dict of :class:`model.nets.transformer.Transformer`; q/k norms are written as (heads,
            head_dim).
        tokenizer: object or path of a ``tokenizer.json``.
        manifest: hashes are filled in.
        vq_state: state dict of :class:`model.nets.vq.VQModel`, written in its own precision.
        vq_file: instead, a ``model-vq.safetensors`` to copy byte for byte.
        generation: sampling defaults.
        dtype: of the transformer in the file; None: as it is.
        extra_state: further tensors for the language model's shard (the projection W as ``perception.weight``).
        card: text of ``README.md``; made from the manifest when absent.
        write_extra: called with the staging folder, to add more (``train/``) under the same rename.
        overwrite: replace an existing checkpoint at that place.

    Raises:
        CheckpointError: ``exists``, or the state does not fit the config.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise CheckpointError("exists", f"{folder} exists already")
    config = replace(config, transformer=replace(config.transformer, tie_word_embeddings=False))
    tokenizer_object = dict(tokenizer) if isinstance(tokenizer, Mapping) else read_json(Path(tokenizer))
    lm_state = _lm_state_to_save(transformer_state, config, dtype) | dict(extra_state or {})
    with staging_folder(folder) as staging:
        _save_tensors(lm_state, staging / LM_FILE)
        shards = dict.fromkeys(lm_state, LM_FILE)
        if vq_file is not None:
            shutil.copyfile(vq_file, staging / VQ_FILE)
            shards |= dict.fromkeys(header_entries(staging / VQ_FILE), VQ_FILE)
        elif vq_state is not None:
            prefixed = {VQ_PREFIX + name: tensor for name, tensor in vq_state.items()}
            _save_tensors(prefixed, staging / VQ_FILE)
            shards |= dict.fromkeys(prefixed, VQ_FILE)
        size = sum(path.stat().st_size for path in staging.glob("*.safetensors"))
        _write_json(staging / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(shards.items()))})
        for name, data in description_files(config, generation).items():
            _write_json(staging / name, data)
        _write_json(staging / "tokenizer.json", tokenizer_object)
        (staging / "README.md").write_text(card or model_card(manifest), "utf-8")
        if write_extra is not None:
            write_extra(staging)
        manifest.write(staging)
        validate_checkpoint(staging, hashes=False)
        sync_tree(staging)
        replace_folder(staging, folder)
    return folder


def _read_descriptions(checkpoint: Path) -> tuple[ModelConfig, Vocabulary, TextTokenizer, Manifest, Parts]:
    """Read config, vocabulary, tokenizer, manifest and parts, with our error codes."""
    if not checkpoint.is_dir():
        raise CheckpointError("not_found", f"{checkpoint} is not a folder")
    parts = parts_of(checkpoint)
    folder = parts.weights
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise CheckpointError("missing_file", f"{folder / name} does not exist")
    try:
        config = ModelConfig.read(folder)
    except ConfigError as error:
        raise CheckpointError("unsupported", f"{folder}: {error}") from error
    try:
        vocab, tokenizer = Vocabulary.read(folder), TextTokenizer(folder)
    except VocabularyError as error:
        raise CheckpointError("wrong_vocabulary", f"{folder}: {error}") from error
    except ConfigError as error:
        raise CheckpointError("broken_file", f"{folder}: {error}") from error
    return config, vocab, tokenizer, Manifest.read(checkpoint), parts


def _empty_transformer(config: ModelConfig, quant: QuantKind | None) -> Transformer:
    transformer = Transformer(config.transformer)
    if quant is not None:
        quantise_linears(transformer, quant)
    return transformer


def _fit_state(state: dict[str, Tensor], config: ModelConfig) -> None:
    """Normalise alternative layouts of the same weights: shared q/k norms, and a tied head."""
    t = config.transformer
    for name, tensor in state.items():
        if "_norm." in name and ".self_attn." in name:
            heads = t.num_heads if ".q_norm." in name else t.num_kv_heads
            rows = tensor.view(-1, t.head_dim)
            state[name] = rows.repeat_interleave(heads // len(rows), 0).contiguous()
    if HEAD not in state:
        state[HEAD] = state[EMBEDDING].clone()


def _build_vq(
    folder: Path,
    entries: Mapping[str, TensorEntry],
    prefix: str,
    config: ModelConfig,
    device: str | torch.device,
    on_bytes: Callable[[int], None] = lambda _count: None,
) -> VQModel | None:
    """Build the VQ in fp32; without a decoder if the files have none, None if they have no encoder either."""
    names = {name.removeprefix(prefix) for name in entries if name.startswith(prefix)}
    if not any(name.startswith("encoder.") for name in names):
        return None
    draws = any(name.startswith("decoder.") for name in names)
    check_vq(entries, prefix, config, draws=draws)
    model = skeleton(lambda: VQModel(config.vq, with_decoder=draws))
    wanted = [prefix + name for name in model.state_dict()]
    state = read_tensors(folder, entries, wanted, Keep(device, torch.float32), on_bytes)
    model.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in state.items()}, assign=True)
    return model


def _lm_state_to_save(
    transformer_state: Mapping[str, Tensor], config: ModelConfig, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    state = {name: transformer_state[name].detach().to("cpu", dtype) for name in transformer_state}
    _fit_state(state, config)
    return state


def _save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    written = set[int]()
    for name, value in sorted(state.items()):
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() > tensor.nbytes or storage.data_ptr() in written:  # safetensors refuses shared memory
            tensor = tensor.clone()
        written.add(storage.data_ptr())
        tensors[name] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _template_name(manifest: Manifest) -> TemplateName:
    if manifest.template not in ("plain", "tagged"):
        raise ValueError(f"unknown template {manifest.template!r}: use plain or tagged")
    return "tagged" if manifest.template == "tagged" else "plain"
