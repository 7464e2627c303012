"""Small files next to the weights: tokenizer and processor files for transformers, and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.checkpoint.manifest import GenerationDefaults, Manifest
from model.config import ModelConfig
from model.text.vocab import BEGIN_IMAGE, BOS, END_IMAGE, EOS, IMAGE, PAD, UNK


def description_files(
    config: ModelConfig, generation: GenerationDefaults | Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """Build file name -> JSON object, including ``config.json``."""
    sampling = generation.to_json() if isinstance(generation, GenerationDefaults) else dict(generation or {})
    ids = config.vocabulary_map
    ends = {"bos_token_id": ids.get(BOS), "pad_token_id": ids.get(PAD), "eos_token_id": ids.get(EOS)}
    return {
        "config.json": config.to_json(),
        "generation_config.json": {**ends, **(sampling or {"do_sample": False})},
        "preprocessor_config.json": _preprocessor(config.vq.resolution),
        "processor_config.json": {
            "processor_class": "ChameleonProcessor",
            "image_seq_length": config.vq.codes_per_image,
            "image_token": IMAGE,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "unk_token": UNK,
            "boi_token": BEGIN_IMAGE,
            "eoi_token": END_IMAGE,
            "image_token": IMAGE,
            "model_max_length": config.transformer.max_position_embeddings,
            "clean_up_tokenization_spaces": False,
        },
    }


def model_card(manifest: Manifest) -> str:
    """Build a plain ``README.md`` from the manifest."""
    lines = [f"# {manifest.name}", "", manifest.description or "A checkpoint of Omni-R1 Studio.", ""]
    lines += [f"- template: {manifest.template}", f"- licence: {manifest.licence or 'not stated'}"]
    if manifest.base:
        lines.append(f"- trained from: {manifest.base}")
    if manifest.card_notes:
        lines += ["", manifest.card_notes]
    return "\n".join(lines) + "\n"


def _preprocessor(size: int) -> dict[str, Any]:
    """x * 2/255 - 1 exactly (:mod:`model.images.codes` explains why not 0.0078)."""
    return {
        "image_processor_type": "ChameleonImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 1,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 2 / 255,
        "do_normalize": True,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
    }
