"""A checkpoint of any size in a second: real headers, a real vocabulary, and weights that are a hole in the file.

Every value is zero, and the disk holds the headers only. Good for memory, not for answers.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model.checkpoint.hf_files import description_files
from model.config import ModelConfig, TransformerConfig, VQConfig
from model.nets.transformer import Transformer
from model.nets.vq import VQModel
from model.text.vocab import BEGIN_IMAGE, BOS, END_IMAGE, EOS, IMAGE, PAD, TAGS, UNK, code_token

NUM_CODES = 8192
NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def chameleon_config(num_layers: int = 32, *, width: int = 4096, vocab_size: int = 65536) -> ModelConfig:
    """Chameleon 7B's shape; fewer layers or a smaller width for tests."""
    heads = width // 128
    transformer = TransformerConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=128,
        max_position_embeddings=4096,
    )
    special = [BOS, PAD, EOS, UNK, *map(code_token, range(NUM_CODES)), END_IMAGE, BEGIN_IMAGE, IMAGE, *TAGS]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"word-{number}" for number in range(vocab_size - len(words))]
    return ModelConfig(transformer, VQConfig.from_json({}), {word: number for number, word in enumerate(words)})


def sparse_checkpoint(folder: Path, config: ModelConfig, *, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write the folder; return it."""
    folder.mkdir(parents=True)
    for name, data in description_files(config, None).items():
        (folder / name).write_text(json.dumps(data))
    tokenizer = Tokenizer(models.BPE(vocab=config.vocabulary_map, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    with torch.device("meta"):
        transformer, vq = Transformer(config.transformer).to(dtype), VQModel(config.vq)
    tensors = {**transformer.state_dict()}
    tensors |= {f"model.vqmodel.{name}": tensor for name, tensor in vq.state_dict().items()}
    header, place = {}, 0
    for name, tensor in tensors.items():
        offsets = [place, place + tensor.numel() * tensor.element_size()]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        place = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    return folder
