"""LoRA training of a large random model: PeSFT on packed tokens, and PeRPO with one image a response."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.engine.phases import LegalIds
from model.low_rank import LoRASettings
from model.nets.lora import attach, shared_copy
from model.nets.transformer import Transformer
from training.data.token_sets import TokenSet, id_to_code, make_batch
from training.jobs.loop import adamw, set_lr
from training.perpo.rollout import Prompt, Sampler
from training.perpo.update import Updater
from training.pesft.loop import SFTModel, SFTSpec, accumulate
from training.scoring.rewards import RewardBreakdown
from training.spec.hyperparameters import PeRPOHyperparameters

Result = dict[str, Any]
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, by the data sheets


def lora_pesft(loaded: LoadedCheckpoint, device: str, *, dry: bool) -> Result:
    """Twenty steps of 5,100 tokens, rank 16, recomputed layers."""
    with with_pairs(loaded) as transformer:
        return _pesft(loaded, transformer, device, dry=dry)


def _pesft(loaded: LoadedCheckpoint, transformer: Transformer, device: str, *, dry: bool) -> Result:
    length, steps = (300, 2) if dry else (5_100, 20)
    rng, vocab = random.Random(0), loaded.vocab
    ids = np.array([vocab.bos_id, *rng.choices(list(vocab.text_ids), k=length - 1)], np.int32)
    data = TokenSet(ids, np.arange(length).astype(bool).astype(np.uint8), np.array([0, length]))
    assert loaded.vq is not None
    spec = SFTSpec(steps=steps, lr=1e-4, precision="bf16")
    model = SFTModel.start(spec, transformer, loaded.vq.codebook, id_to_code(vocab))
    optimizer = adamw([transformer], weight_decay=0.0)
    set_lr(optimizer, 1e-4)
    batch = make_batch(data, np.array([0]), model.id_to_code, device)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss, _ = accumulate(model, [batch], spec)
        optimizer.step()
        return loss

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first = step()
    began = time.perf_counter()
    last = [step() for _ in range(steps - 1)][-1]
    seconds = (time.perf_counter() - began) / (steps - 1)
    result = {"tokens_s": length / seconds, "first_loss": first, "last_loss": last, **_peak(device)}
    flops = next((value for name, value in PEAK_FLOPS.items() if device == "cuda" and name in _name()), None)
    if flops:  # forward and the gradient of the inputs; frozen matrices need no gradient of their own
        parameters = sum(p.numel() for p in transformer.parameters())
        result["mfu"] = 4 * parameters * length / seconds / flops
    return result


def lora_perpo(loaded: LoadedCheckpoint, device: str, *, dry: bool) -> Result:
    """Two steps of 2 prompts with 4 responses of one image's length, the frozen base as the reference."""
    reference = shared_copy(loaded.transformer.requires_grad_(False)).eval()
    with with_pairs(loaded) as transformer:
        return _perpo(loaded, transformer, reference, device, dry=dry)


def _perpo(
    loaded: LoadedCheckpoint, transformer: Transformer, reference: Transformer, device: str, *, dry: bool
) -> Result:
    new = 32 if dry else loaded.vocab.codes_per_image + 64
    hp = PeRPOHyperparameters.model_validate(
        {"steps": 2, "prompts_per_step": 2, "rollouts_per_prompt": 4, "mini_batch_prompts": 2, "precision": "bf16"}
    )
    sampler = Sampler(
        transformer, loaded.vocab, loaded.template, group_size=4, max_new_tokens=new, max_prompt_len=128, num_slots=8
    )
    updater = Updater(transformer, reference, LegalIds.of(loaded.template, loaded.vocab), hp)
    words = list(loaded.vocab.text_ids)
    prompts = [Prompt(i, tuple(random.Random(i).choices(words, k=100)), "", (), "") for i in range(2)]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rows, mismatch = [], 0.0
    for number in range(2):
        began = time.perf_counter()
        groups = sampler.sample(prompts, seed=0, step=number)
        drawn = time.perf_counter()
        for group in groups:
            for rollout in group.rollouts:
                right = float(rollout.index % 2)
                rollout.reward = RewardBreakdown(total=right, accuracy=right, format=1.0, perception=0.0)
        mismatch = updater.step(groups, number)["mismatch/mean"]
        rows.append((drawn - began, time.perf_counter() - drawn))
    return {"rollout_s": rows[-1][0], "update_s": rows[-1][1], "mismatch_mean": mismatch, **_peak(device)}


@contextmanager
def with_pairs(loaded: LoadedCheckpoint) -> Iterator[Transformer]:
    """The transformer in training with pairs of rank 16, which are removed afterwards."""
    transformer = loaded.transformer.train()
    transformer.recompute_layers = True
    attach(transformer, LoRASettings(16, 32.0))
    try:
        yield transformer
    finally:
        for module in transformer.modules():
            if hasattr(module, "lora"):
                del module.lora
        transformer.recompute_layers = False
        transformer.eval().requires_grad_(False)


def _peak(device: str) -> Result:
    return {"peak_bytes": torch.cuda.max_memory_allocated()} if device == "cuda" else {}


def _name() -> str:
    return torch.cuda.get_device_name()
