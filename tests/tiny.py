"""A complete checkpoint in a second: random weights of the real architecture, small enough for every test.

``make_tiny_checkpoint(folder)`` writes one that our loader and transformers can read; ``layout="meta"`` writes the same
model in the layout of Meta's Chameleon release (``.pth``, interleaved rotary order, ``vqgan.ckpt``), for the converter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model.checkpoint.adapter import save_adapter
from model.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from model.checkpoint.manifest import Capabilities, GenerationDefaults, ImageCount, Manifest, Perception
from model.config import ModelConfig, TransformerConfig, VQConfig
from model.low_rank import LoRASettings
from model.nets.lora import attach, pairs
from model.nets.transformer import CausalAttention, Transformer
from model.nets.vq import VQModel
from model.text.tokenizer import train_bpe
from model.text.vocab import Vocabulary

TEXTS = [
    "Where is the red star? I look for the red star. I draw a box around it and zoom in. It is red.",
    "You are a helpful assistant.\nUser: ",
    " Think with images first. The image reasoning process and answer are enclosed within XML tags, respectively.",
    "\nAssistant: Let's think step-by-step.",
    "The walker moves up, then right. The next state is row 2, column 3.",
]
NUM_CODES = 64


def tiny_config(*, resolution: int = 16, num_codes: int = NUM_CODES, context_len: int = 512) -> tuple[ModelConfig, Any]:
    """Config and tokenizer of a tiny checkpoint; 8 px per code, so 16 px are 4 codes and 32 px are 16."""
    tokenizer = train_bpe(TEXTS * 20, num_codes, text_vocab=448)
    transformer = TransformerConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position_embeddings=context_len,
    )
    vq = VQConfig(
        resolution=resolution,
        base_channels=32,
        channel_multiplier=(1, 1, 1, 2),  # 32 channels alone would be instance norm: blind to flat colours
        num_res_blocks=1,
        embed_dim=8,
        latent_channels=8,
        num_embeddings=num_codes,
    )
    return ModelConfig(transformer, vq, tokenizer.get_vocab()), json.loads(tokenizer.to_str())


def tiny_modules(config: ModelConfig, *, seed: int = 0, decoder: bool = True) -> tuple[Transformer, VQModel]:
    """Random modules with weights large enough for tests to distinguish them (norms and biases included)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer, vq = Transformer(config.transformer), VQModel(config.vq, with_decoder=decoder)
        with torch.no_grad():
            for name, parameter in transformer.named_parameters():
                noise = torch.randn_like(parameter)
                if "norm" in name:
                    parameter.copy_(noise * 0.2 + (0.0 if name.endswith("bias") else 1.0))
                else:
                    parameter.copy_(noise * (0.3 if "embed" in name or "head" in name else parameter.shape[-1] ** -0.5))
            vq.quantize.embedding.weight.copy_(torch.randn(config.vq.num_embeddings, config.vq.embed_dim) * 0.3)
    return transformer.eval(), vq.eval()


def make_tiny_checkpoint(
    folder: str | Path,
    *,
    layout: Literal["hf", "meta"] = "hf",
    decoder: bool = True,
    template: Literal["plain", "tagged"] = "plain",
    qk_norm: Literal["heads", "dim"] = "heads",
    seed: int = 0,
    resolution: int = 16,
    num_codes: int = NUM_CODES,
    context_len: int = 512,
    name: str | None = None,
    dtype: torch.dtype | None = torch.float32,
    images: ImageCount | None = None,
    generation: GenerationDefaults | None = None,
    verifier: str = "",
) -> Path:
    """Write a tiny checkpoint; returns its folder.

    Args:
        layout: ``hf``, or ``meta`` for the layout of Meta's release.
        decoder: without it the checkpoint reads images but cannot generate them.
        qk_norm: q/k-norm vectors stored per head, or one (head_dim,) vector for all heads (as the older HF files).
        resolution: 16 -> 4 codes per image, 32 -> 16.
        dtype: of the stored transformer weights; the VQ is fp32.
        verifier: the question by which it judges drawings, if it does.
    """
    folder = Path(folder)
    config, tokenizer = tiny_config(resolution=resolution, num_codes=num_codes, context_len=context_len)
    transformer, vq = tiny_modules(config, seed=seed, decoder=decoder)
    state = {key: value.detach().clone() for key, value in transformer.state_dict().items()}
    if qk_norm == "dim" or layout == "meta":
        for key, value in state.items():
            if ".q_norm." in key or ".k_norm." in key:
                state[key] = value[0].expand_as(value).clone()
    vq_state = dict(vq.state_dict())
    if not decoder:  # released without a decoder, but with this one convolution of it
        conv = torch.nn.Conv2d(config.vq.embed_dim, config.vq.latent_channels, 1)
        vq_state |= {"post_quant_conv.weight": conv.weight.detach(), "post_quant_conv.bias": conv.bias.detach()}
    if layout == "meta":
        return _write_meta(folder, config, tokenizer, state, vq_state)
    manifest = Manifest(
        name=name or folder.name,
        template=template,
        licence="MIT",
        description="Random weights for tests.",
        capabilities=Capabilities(images_in_answer=decoder),
        images=images or ImageCount(0, 2),
        perception=Perception(tau=3.0, energy_p95=0.0),  # calibrated, without a cap
        verifier=verifier,
    )
    save_checkpoint(
        folder,
        config=config,
        transformer_state=state,
        vq_state=vq_state,
        tokenizer=tokenizer,
        manifest=manifest,
        generation=generation,
        dtype=dtype,
    )
    if qk_norm == "dim":
        _shrink_qk_norms(folder)
    return folder


def make_drawing_checkpoint(folder: str | Path, *, seed: int = 0, verifier: str = "") -> Path:
    """Write a tiny checkpoint that draws often (about every tenth token at temperature 1) and never ends by itself.

    Column 0 of the residual stream is made a positive constant, on which those two logits alone depend. The other
    logits are spread, so that hardly a choice is a near tie (1 in 1,000 lies within 1e-4).
    """
    config, tokenizer = tiny_config()
    vocab = Vocabulary.from_parts(config, tokenizer)
    transformer, vq = tiny_modules(config, seed=seed)
    state = {key: value.clone() for key, value in transformer.state_dict().items()}
    state["model.embed_tokens.weight"][:, 0] = 1.0
    for name, value in state.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            value[0] = 0.0
    head = state["lm_head.weight"].mul_(4.0)
    head[:, 0] = head[vocab.boi_id] = head[vocab.eos_id] = 0.0
    transformer.load_state_dict(state)
    ids = torch.tensor(vocab.text_ids).repeat(3)[None, :500]
    with torch.no_grad():
        hidden = transformer(ids, torch.arange(ids.shape[1])[None], CausalAttention())[0]
        usual = transformer.logits(hidden)[:, list(vocab.text_ids)].logsumexp(-1).mean()
        head[vocab.boi_id, 0] = (usual - 2.0) / hidden[:, 0].mean()
        head[vocab.eos_id, 0] = -1000.0
    return save_checkpoint(
        folder,
        config=config,
        transformer_state=state,
        vq_state=vq.state_dict(),
        tokenizer=tokenizer,
        manifest=Manifest(
            Path(folder).name,
            licence="MIT",
            description="Random weights for tests.",
            images=ImageCount(0, 2),
            perception=Perception(tau=3.0, energy_p95=0.0),  # calibrated, without a cap
            verifier=verifier,
        ),
        dtype=torch.float32,
    )


def _shrink_qk_norms(folder: Path) -> None:
    """Store one (head_dim,) vector for all heads."""
    from safetensors.torch import load_file, save_file

    path = folder / "model-lm.safetensors"
    state = {
        key: value[0].clone() if ".q_norm." in key or ".k_norm." in key else value
        for key, value in load_file(path).items()
    }
    save_file(state, path, metadata={"format": "pt"})
    Manifest.read(folder).write(folder)


def interleave(weight: Tensor, head_dim: int) -> Tensor:
    """The inverse of the converter's permutation: half-split rotary order -> Meta's interleaved order."""
    heads = weight.shape[0] // head_dim
    split = weight.reshape(heads, 2, head_dim // 2, *weight.shape[1:])
    return split.transpose(1, 2).reshape(weight.shape).contiguous()


def _write_meta(
    folder: Path, config: ModelConfig, tokenizer: dict[str, Any], state: dict[str, Tensor], vq_state: dict[str, Tensor]
) -> Path:
    t, v = config.transformer, config.vq
    (folder / "models" / "7b").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    meta = {
        "tok_embeddings.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for i in range(t.num_layers):
        ours, theirs = f"model.layers.{i}.", f"layers.{i}."
        attention = ours + "self_attn."
        meta |= {
            theirs + "attention.wq.weight": interleave(state[attention + "q_proj.weight"], t.head_dim),
            theirs + "attention.wk.weight": interleave(state[attention + "k_proj.weight"], t.head_dim),
            theirs + "attention.wv.weight": state[attention + "v_proj.weight"],
            theirs + "attention.wo.weight": state[attention + "o_proj.weight"],
            theirs + "feed_forward.w1.weight": state[ours + "mlp.gate_proj.weight"],
            theirs + "feed_forward.w2.weight": state[ours + "mlp.down_proj.weight"],
            theirs + "feed_forward.w3.weight": state[ours + "mlp.up_proj.weight"],
            theirs + "attention_norm.weight": state[ours + "input_layernorm.weight"],
            theirs + "ffn_norm.weight": state[ours + "post_attention_layernorm.weight"],
        }
        for which in ("q", "k"):
            for part in ("weight", "bias"):
                vector = state[f"{attention}{which}_norm.{part}"][0]
                meta[f"{theirs}attention.{which}_normalization.{part}"] = interleave(vector, t.head_dim)
    meta["rope.freqs"] = torch.zeros(t.head_dim // 2)
    torch.save(meta, folder / "models" / "7b" / "consolidated.pth")
    params = {
        "model": {
            "dim": t.hidden_size,
            "n_layers": t.num_layers,
            "n_heads": t.num_heads,
            "n_kv_heads": t.num_kv_heads,
            "norm_eps": t.rms_norm_eps,
            "swin_norm": False,
            "rope_theta": t.rope_theta,
            "max_seq_len": t.max_position_embeddings,
        }
    }
    (folder / "models" / "7b" / "params.json").write_text(json.dumps(params))
    text = json.loads(json.dumps(tokenizer))
    ids = text["model"]["vocab"]
    ids["<reserved08707>"] = ids.pop("<image>")  # Meta's tokenizer has no <image>: HF renames a reserved token
    for added in text["added_tokens"]:
        if added["content"] == "<image>":
            added["content"] = "<reserved08707>"
    (folder / "tokenizer" / "text_tokenizer.json").write_text(json.dumps(text))
    torch.save({"state_dict": vq_state | {"loss.logvar": torch.zeros(())}}, folder / "tokenizer" / "vqgan.ckpt")
    yaml = (
        "model:\n  base_learning_rate: 4.5e-06\n  target: taming.models.vqgan.VQModel\n  params:\n"
        f"    embed_dim: {v.embed_dim}\n    n_embed: {v.num_embeddings}\n    ddconfig:\n      double_z: false\n"
        f"      z_channels: {v.latent_channels}\n      resolution: {v.resolution}\n"
        "      in_channels: 3\n      out_ch: 3\n"
        f"      ch: {v.base_channels}\n      ch_mult: {list(v.channel_multiplier)}\n"
        f"      num_res_blocks: {v.num_res_blocks}\n      attn_resolutions: []\n      dropout: 0.0\n"
        "    lossconfig:\n      target: taming.modules.losses.vqperceptual.DummyLoss\n    ckpt_path: vqgan.ckpt\n"
    )
    (folder / "tokenizer" / "vqgan.yaml").write_text(yaml)
    return folder


def make_adapter(folder: Path, base: Path, *, named: str | None = None, rank: int = 3, seed: int = 1) -> Path:
    """Write a LoRA adapter that changes the answers of ``base``, which its config calls ``named``, else by its path."""
    transformer = load_checkpoint(base).transformer
    settings = LoRASettings(rank, 2.0 * rank, targets=("q_proj", "v_proj", "down_proj"))
    attach(transformer, settings, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _, pair in pairs(transformer):
            torch.nn.init.normal_(pair.b, std=0.05)
    save_adapter(folder, transformer, settings, base=named or str(base))
    return folder
