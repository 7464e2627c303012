"""How much memory a checkpoint takes on a device: counted from its headers, without torch.

Bytes everywhere. *Weights* are what stays while serving, every copy included; *work* is what a step needs besides:
a pass needs `work_per_token` for each position, its matrices more for a part of them, and the image tokenizer
`image_work` for one image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.parts import weights_of
from model.checkpoint.shards import TensorEntry, read_entries
from model.config import CHAMELEON_CONTEXT, LONGEST_CONTEXT, ModelConfig, TransformerConfig, VQConfig
from model.paging import GRAPH_SIZES, PAGE, PART, pages_of
from model.quantisation import BLOCK, QuantKind

VQ_PREFIX = "model.vqmodel."
MAPPED_BYTES = 1 << 29  # of a file that is being read: the pages count as memory of the process
LARGE_GPU = 30 << 30  # bytes, of cards sold with 32 GB: from here on several images are decoded at once
RUNTIME_BYTES = {"cpu": 200_000_000, "mps": 600_000_000, "cuda": 600_000_000}  # kernels and libraries of a device
WIDTHS = {"fp32": 4, "bf16": 2}
TRAINED_TOKENS = 5_100  # of one sequence in training: the longest of the authors' code
AMPLE_CONTEXT = 12_000  # of serving: ten drawings of a 7B behind an image, and what the authors generate
LORA_RANK = 16
CHUNKED_LOGITS = 1 << 25  # of a loss that exist at once
LOGIT_BYTES, POLICY_LOGIT_BYTES = 12, 28  # of each with its gradient: cross-entropy alone, and PeRPO's with entropies
_ENCODER_COPIES = 6.2  # activations at full resolution at the encoder's peak, measured with the 7B's VQ in fp32


@dataclass(frozen=True)
class MemoryNeeds:
    """What a checkpoint needs on a device."""

    weights: int
    loading_peak: int
    kv_per_token: int
    work_per_token: int
    work_fixed: int
    paged: bool = False  # keys and values lie in pages
    batch_work: int = 0  # what a batch of images takes besides one, on a large GPU

    def room(self, memory: int) -> int:
        """Bytes of ``memory`` left for sequences."""
        return memory - self.weights - self.work_fixed - (self.batch_work if memory >= LARGE_GPU else 0)

    def max_context(self, memory: int) -> int:
        """Positions of one trace that has the device to itself, at most `LONGEST_CONTEXT`; 0 if none fits."""
        if self.loading_peak > memory:
            return 0
        longest = max(0, min(LONGEST_CONTEXT, self.room(memory) // (self.kv_per_token + self.work_per_token)))
        return longest // PAGE * PAGE if self.paged else longest

    def share(self, memory: int) -> int:
        """Bytes of ``memory`` that serving takes: half if a context of `AMPLE_CONTEXT` fits into that, else all.

        So another checkpoint of this size can be loaded beside it where the device is large enough.
        """
        half = memory // 2
        return half if self.max_context(half) >= AMPLE_CONTEXT else memory

    def default_context(self, own: int, memory: int) -> int:
        """Tokens of a trace unless a setting says otherwise: what ``memory`` holds with pages, at least its ``own``.

        Contexts shorter than Chameleon's come from training on sequences of that length, and stay.
        """
        return max(own, self.max_context(memory)) if self.paged and own >= CHAMELEON_CONTEXT else own

    def twice_kv(self, memory: int, own: int) -> int:
        """Most bytes of keys and values with which two of these fit into ``memory``; 0 if they hold no ``own`` context.

        A forward pass over ``own`` positions fits beside them.
        """
        half = memory // 2
        budget = self.kv_budget(half, own) if self.loading_peak <= half else 0
        return budget if budget >= self.kv_of(own) else 0

    def kv_budget(self, memory: int, positions: int) -> int:
        """Bytes of ``memory`` left for keys and values beside a forward pass over ``positions``.

        A prefill into pages has shorter passes than its prompt, but what explains a trace has one over all of it.
        """
        return max(0, self.room(memory) - self.work_per_token * positions)

    def kv_of(self, context: int) -> int:
        """Bytes of the keys and values of a whole context."""
        return self.kv_per_token * (PAGE * pages_of(context) if self.paged else context)

    def slots(self, memory: int, context: int, most: int) -> int:
        """Traces that fill ``context`` positions and run at once, at most ``most``."""
        return min(most, self.kv_budget(memory, context) // self.kv_of(context))


def needs_of(
    folder: Path, *, width: int, device: str, quant: QuantKind | None = None, paged: bool | None = None
) -> MemoryNeeds:
    """What the checkpoint in ``folder`` needs with numbers of ``width`` bytes (4: fp32, 2: bf16); the VQ is in fp32.

    ``quant``: projections and head take one byte a number, and four for the scale of each output. ``paged``: whether
    keys and values lie in pages; None: as a GPU of the last years serves them.

    Raises:
        CheckpointError, ConfigError: the folder is invalid.
    """
    folder = weights_of(folder)
    config, entries = ModelConfig.read(folder), read_entries(folder)
    return memory_needs(config, entries, width=width, device=device, quant=quant, paged=paged)


def memory_needs(
    config: ModelConfig,
    entries: Mapping[str, TensorEntry],
    *,
    width: int,
    device: str = "cpu",
    quant: QuantKind | None = None,
    paged: bool | None = None,
) -> MemoryNeeds:
    """:func:`needs_of` for a config and tensor entries that are already read."""
    t = config.transformer
    vq = 4 * sum(math.prod(entry.shape) for name, entry in entries.items() if name.startswith(VQ_PREFIX))
    head = t.vocab_size * t.hidden_size
    stored = width if quant is None else 1  # bytes of a number of a matrix
    scales = 0 if quant is None else 4 * (t.num_layers * _outputs(t) + t.vocab_size)
    weights = width * parameters(t) - (width - stored) * (t.num_layers * _matrices(t) + head) + scales + vq
    # A layer's stacked matrices next to the engine's copies of all of its own, or the head next to its columns.
    copied = stored * max(layer_parameters(t) + _stacked(t), head)
    if quant is not None:
        copied = max(copied, 3 * 4 * BLOCK)  # a block in fp32, and its numbers before they are rounded
    largest = max((4 * math.prod(entry.shape) for entry in entries.values()), default=0)
    restored = 4 if device == "cpu" else 0  # fp8 on a CPU, on its way to `width` bytes
    paged = (device == "cuda" and width == 2) if paged is None else paged
    row = width * (6 * t.hidden_size + 4 * t.intermediate_size) + 4 * 6 * t.hidden_size  # of a layer's matrices
    work_fixed = image_work(config.vq) + RUNTIME_BYTES[device] + row * (PART + (GRAPH_SIZES[-1] if paged else 0))
    queries = t.num_heads * t.head_dim
    return MemoryNeeds(
        weights=weights,
        loading_peak=weights + max(copied, MAPPED_BYTES + largest if device == "cpu" else 0),
        kv_per_token=2 * t.num_layers * t.num_kv_heads * t.head_dim * width,
        work_per_token=width * (2 * t.hidden_size + 3 * queries + 2 * t.num_kv_heads * t.head_dim) + 8,
        work_fixed=work_fixed + (0 if quant is None else (width + restored) * BLOCK),
        paged=paged,
        batch_work=image_work(config.vq) if device == "cuda" else 0,  # four in bf16 take what two in fp32 do
    )


@dataclass(frozen=True)
class JobFigures:
    """What decides a job's memory, its weights aside; by default a job at its least, as `omni-r1 doctor` counts it.

    Attributes:
        tokens: that training computes at once.
        recompute: whether only the input of each layer is kept for the backward.
        rank: of LoRA pairs.
        targets: projections that have a pair; None: all.
        context: positions of a rollout; this and what follows is PeRPO's.
        rollouts: at once.
        engines: with weights and rollouts of their own: that of the rollouts, perhaps one of the validation.
        reference: whether a reference policy is kept; with LoRA the frozen weights are one.
        average: whether a moving average of what is trained is kept.
    """

    tokens: int = TRAINED_TOKENS
    recompute: bool = True
    rank: int = LORA_RANK
    targets: Sequence[str] | None = None
    context: int = TRAINED_TOKENS
    rollouts: int = 2
    engines: int = 1
    reference: bool = True
    average: bool = False


def training_needs(
    config: ModelConfig,
    entries: Mapping[str, TensorEntry],
    *,
    width: int,
    device: str,
    figures: JobFigures = JobFigures(),
) -> dict[str, int]:
    """Bytes of each kind of job with these figures.

    ``full_*`` train every weight, in fp32 with AdamW; the forward runs with numbers of ``width`` bytes. ``lora_*`` keep
    the weights in ``width`` bytes and train pairs. Both keep the input of each layer and one layer's activations in the
    backward pass, or the activations of all layers. PeRPO adds the rows of the head that can be sampled, the engine's
    own weights, keys and values, and in full a reference policy. A save takes less than a step.
    """
    t, v = config.transformer, config.transformer.vocab_size
    still = RUNTIME_BYTES[device] + memory_needs(config, entries, width=4).weights - 4 * parameters(t)  # and the VQ
    one = layer_activations(t, width=width)
    if figures.recompute:
        states = figures.tokens * (one + 4 * t.num_layers * t.hidden_size)
        full_copies = lora_copies = 0
    else:
        states = figures.tokens * t.num_layers * one
        others = width * (t.num_layers - 1)  # layers whose stacked weights are kept, too
        full_copies = others * (_stacked(t) if width == 4 else layer_parameters(t))
        lora_copies = others * _stacked(t)
    states += 2 * (width + 4) * layer_parameters(t)  # the layer's stacked weights and their gradient
    logits = min(figures.tokens * v, CHUNKED_LOGITS)
    pairs = figures.rank * t.num_layers * _lora_edges(t, figures.targets)
    full = still + 16 * parameters(t) + states + full_copies
    lora = still + width * parameters(t) + 16 * pairs + states + lora_copies
    kv = 2 * t.num_layers * t.num_kv_heads * t.head_dim * figures.context
    rollouts = figures.engines * (parameters(t) + figures.rollouts * kv)
    policies = figures.reference + figures.average
    head, policy = v * t.hidden_size, POLICY_LOGIT_BYTES * logits
    return {
        "lora_pesft": lora + LOGIT_BYTES * logits,
        "full_pesft": full + LOGIT_BYTES * logits,
        "lora_perpo": lora + policy + width * (head + rollouts) + 4 * figures.average * pairs,
        "full_perpo": full + policy + (12 + width) * head + 4 * (rollouts + policies * parameters(t)),
    }


def spread_needs(
    config: ModelConfig,
    entries: Mapping[str, TensorEntry],
    *,
    devices: int,
    width: int,
    device: str,
    figures: JobFigures = JobFigures(),
) -> int:
    """Bytes of full PeSFT on each of several devices: 1/N of what the optimiser trains, and what FSDP gathers.

    Gathered in fp32 are embedding and head with their gradients, the layer at work, the one fetched ahead of it and one
    layer's gradient. Otherwise counted as :func:`training_needs` does.
    """
    t = config.transformer
    alone = training_needs(config, entries, width=width, device=device, figures=figures)["full_pesft"]
    if devices == 1:
        return alone
    ends = 2 * t.vocab_size * t.hidden_size
    trained = 16 * parameters(t)
    return alone - trained + -(-trained // devices) + 4 * (2 * ends + 3 * layer_parameters(t))


def layer_activations(t: TransformerConfig, *, width: int) -> int:
    """Bytes that a layer keeps of one position for its backward pass; a test counts them in a real forward."""
    return (
        (51 * t.hidden_size + 16 * t.intermediate_size) if width == 4 else 43 * t.hidden_size + 8 * t.intermediate_size
    )


def _lora_edges(t: TransformerConfig, targets: Sequence[str] | None) -> int:
    """Inputs and outputs of a layer's matrices, or of these."""
    queries, keys = t.num_heads * t.head_dim, t.num_kv_heads * t.head_dim
    others = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "o_proj": queries}
    others |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), t.intermediate_size)
    return sum(t.hidden_size + others[name] for name in targets or others)


def parameters(t: TransformerConfig) -> int:
    """Numbers in a transformer, embedding and (untied) head included."""
    return t.num_layers * layer_parameters(t) + 2 * t.vocab_size * t.hidden_size + 2 * t.hidden_size


def layer_parameters(t: TransformerConfig) -> int:
    """Numbers in a layer of the engine, its q/k norms expanded to a row a head."""
    return _matrices(t) + 2 * t.hidden_size + 2 * (t.num_heads + t.num_kv_heads) * t.head_dim


def _matrices(t: TransformerConfig) -> int:
    """Numbers in a layer's matrices."""
    return _stacked(t) + t.hidden_size * t.num_heads * t.head_dim + t.hidden_size * t.intermediate_size


def _outputs(t: TransformerConfig) -> int:
    """Outputs of a layer's matrices."""
    return (t.num_heads + 2 * t.num_kv_heads) * t.head_dim + 2 * t.hidden_size + 2 * t.intermediate_size


def _stacked(t: TransformerConfig) -> int:
    return t.hidden_size * ((t.num_heads + 2 * t.num_kv_heads) * t.head_dim + 2 * t.intermediate_size)


def image_work(vq: VQConfig) -> int:
    """Bytes of activations to encode one image; decoding takes fewer."""
    return int(4 * _ENCODER_COPIES * vq.resolution**2 * vq.base_channels)
