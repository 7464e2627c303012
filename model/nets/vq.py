"""The image tokenizer: VQ encoder, quantiser and **decoder** in the layout of the Chameleon / Anole checkpoints.

Converts an image of R x R pixels to N = (R / f)^2 codes, row-major, and back. The encoder and the quantiser carry the
parameter names that transformers' ``ChameleonVQVAE`` uses, the decoder those of Anole's files (taming transformers), so
that a released checkpoint loads without renaming. transformers ships no decoder, so nothing built on it can show the
model's images.

Knows nothing of token ids ( :mod:`model.text.vocab`), files or PIL (:mod:`model.images.codes`).

Shapes: B batch, R resolution, N codes per image, D codebook width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.nets.embedding import new_embedding
from model.precision import autocast, has_bf16

if TYPE_CHECKING:
    from model.config import VQConfig

NORM_GROUPS = 32
NORM_EPS = 1e-6
CHANNELS_LAST_FROM = (
    32  # rows, in bf16 on a CPU: below that GroupNorm is slower channels last, above it upsampling is faster
)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS)


class ResnetBlock(nn.Module):
    """norm, SiLU, 3x3 convolution, twice, plus a shortcut (1x1 if the width changes)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over the positions of the feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))  # [B, HW, C]
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(out)


class Downsample(nn.Module):
    """Stride-2 convolution, padded on the right and below only (0, 1, 0, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H / 2, W / 2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour x2, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 2 H, 2 W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """One resolution: its residual blocks, their attention (often none) and the change of scale."""

    def __init__(self, block: list[ResnetBlock], attn: list[AttnBlock]) -> None:
        super().__init__()
        self.block = nn.ModuleList(block)
        self.attn = nn.ModuleList(attn)
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def run(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


def _level(widths: list[tuple[int, int]], attend: bool, dropout: float) -> _Level:
    return _Level([ResnetBlock(a, b, dropout) for a, b in widths], [AttnBlock(b) for _, b in widths] if attend else [])


class _Middle(nn.Module):
    def __init__(self, channels: int, config: VQConfig) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, config.dropout)
        self.attn_1 = AttnBlock(channels) if config.attn_type == "vanilla" else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


def _attends(config: VQConfig, resolution: int) -> bool:
    return config.attn_type == "vanilla" and resolution in (config.attn_resolutions or ())


class Encoder(nn.Module):
    """Pixels [B, 3, R, R] to features [B, latent_channels, R/f, R/f]."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multiplier]
        self.conv_in = nn.Conv2d(config.in_channels, config.base_channels, 3, padding=1)
        levels: list[_Level] = []
        channels, resolution = config.base_channels, config.resolution
        for i, width in enumerate(widths):
            pairs = [(channels if j == 0 else width, width) for j in range(config.num_res_blocks)]
            level = _level(pairs, _attends(config, resolution), config.dropout)
            channels = width
            if i + 1 < len(widths):
                level.downsample = Downsample(channels)
                resolution //= 2
            levels.append(level)
        self.down = nn.ModuleList(levels)
        self.mid = _Middle(channels, config)
        self.norm_out = _norm(channels)
        self.conv_out = nn.Conv2d(channels, config.latent_channels * (2 if config.double_latent else 1), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [B, in_channels, R, R] in [-1, 1] to features."""
        x = self.conv_in(x)
        for level in self._levels():
            x = level.run(x)
            if level.downsample is not None:
                x = level.downsample(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))

    def _levels(self) -> list[_Level]:
        return [level for level in self.down if isinstance(level, _Level)]


class Decoder(nn.Module):
    """Features [B, latent_channels, R/f, R/f] to pixels [B, 3, R, R]; ``up.0`` is the finest level, as in the files."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multiplier]
        channels = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.mid = _Middle(channels, config)
        levels: list[_Level] = []
        resolution = config.resolution >> (len(widths) - 1)
        for i in reversed(range(len(widths))):
            pairs = [(channels if j == 0 else widths[i], widths[i]) for j in range(config.num_res_blocks + 1)]
            level = _level(pairs, _attends(config, resolution), config.dropout)
            channels = widths[i]
            if i:
                level.upsample = Upsample(channels)
                resolution *= 2
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(channels)
        self.conv_out = nn.Conv2d(channels, config.out_channels, 3, padding=1)

    def forward(self, z: Tensor, *, last_from: int | None = None) -> Tensor:
        """`last_from`: resolution from which on to use channels last."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self._levels()):
            x = level.run(x)
            if level.upsample is not None:
                if last_from is not None and 2 * x.shape[-1] >= last_from:
                    x = x.contiguous(memory_format=torch.channels_last)
                x = level.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))

    def _levels(self) -> list[_Level]:
        return [level for level in self.up if isinstance(level, _Level)]


class Quantizer(nn.Module):
    """Nearest codebook vector in the squared Euclidean distance."""

    def __init__(self, num_embeddings: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = new_embedding(num_embeddings, embed_dim)

    def nearest(self, z: Tensor) -> Tensor:
        """Codes [...] of the vectors z [..., D]; always computed in fp32, so that codes do not flicker."""
        flat, book = z.reshape(-1, z.shape[-1]).float(), self.embedding.weight.float()
        distance = book.square().sum(1) - 2.0 * flat @ book.T
        return distance.argmin(1).view(z.shape[:-1])


class VQModel(nn.Module):
    """Encoder, quantiser and decoder of one checkpoint.

    ``decoder`` and ``post_quant_conv`` are None when ``with_decoder`` is false (``facebook/chameleon-7b`` was released
    without): such a checkpoint reads images but cannot draw.
    """

    def __init__(self, config: VQConfig, *, with_decoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantize = Quantizer(config.num_embeddings, config.embed_dim)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1) if with_decoder else None
        self.decoder = Decoder(config) if with_decoder else None

    @property
    def codebook(self) -> Tensor:
        """The codebook E, [num_embeddings, D]."""
        return self.quantize.embedding.weight

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes in one image."""
        side = self.config.resolution >> (len(self.config.channel_multiplier) - 1)
        return side, side

    def features(self, pixels: Tensor) -> Tensor:
        """Unquantised vectors [B, N, D] of the pixels [B, 3, R, R] in [-1, 1]."""
        return self.quant_conv(self.encoder(pixels)).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Codes [B, N] (int64, row-major) of the pixels [B, 3, R, R] in [-1, 1]."""
        return self.quantize.nearest(self.features(pixels))

    def decode_vectors(self, vectors: Tensor, *, last_from: int | None = None) -> Tensor:
        """Pixels [B, 3, R, R] of the quantised vectors [B, N, D]; not clamped. `last_from` as in the decoder.

        Raises:
            ValueError: this checkpoint has no decoder.
        """
        if self.decoder is None or self.post_quant_conv is None:
            raise ValueError("this checkpoint has no VQ decoder: it cannot draw")
        z = vectors.transpose(1, 2).contiguous().unflatten(2, self.grid)  # GroupNorm is 3x slower on other layouts
        return self.decoder(self.post_quant_conv(z), last_from=last_from)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Pixels [B, 3, R, R] in [-1, 1] of the codes [B, N], fp32.

        CPUs and NVIDIA GPUs with bf16 in hardware decode in bf16. On such a CPU that takes half the time and differs
        from fp32 by 0.3 of 256 grey levels on average, at most 5 (measured on the embedded checkpoint). Tokens do not
        depend on the decoder.

        Raises:
            ValueError: this checkpoint has no decoder.
        """
        vectors, device = self.quantize.embedding(codes), self.codebook.device
        if device.type != "mps" and has_bf16(device):
            with autocast("bf16", device):
                pixels = self.decode_vectors(vectors, last_from=CHANNELS_LAST_FROM if device.type == "cpu" else None)
                return pixels.float().contiguous().clamp(-1.0, 1.0)
        return self.decode_vectors(vectors).clamp(-1.0, 1.0)
