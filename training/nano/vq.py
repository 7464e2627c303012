"""Train the image tokenizer of the embedded family on images of the task world.

Four phases, all by step count: code-aligned crops of half the side first (a quarter of the cost; the GroupNorms see
varied statistics, which keeps codes local), then whole images, then whole images again from a raised learning rate,
then the decoder alone, on the codes that the transformers will learn to draw. The first steps run without quantisation;
then the codebook is initialised by k-means and updated by exponential moving averages, and unused codes are moved onto
live features. The reconstruction error is weighted at edges and ink, which a plain mean would blur.

Launch: ``omni-r1 train nano --stage vq``.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from model.config import VQConfig
from model.nets.vq import VQModel
from model.precision import PrecisionChoice, autocast
from training.data.token_sets import ImageCoder, to_pixels, training_tasks
from training.jobs.loop import RunFolder, StopFlag, adamw, set_lr
from training.jobs.precision import BEFORE_AUTO, run_precision
from training.jobs.schedules import CosineSchedule
from training.world.scenes import random_image

if TYPE_CHECKING:
    from pathlib import Path

CROP = 32  # pixels; a multiple of the code size
DECODER_SEEDS = 18_000_000  # of the base's share


@dataclass(frozen=True, slots=True)
class VQSpec:
    """Settings of the VQ stage; the defaults are the recipe of the shipped weights."""

    seed: int = 0
    pictures: int = 24_000
    crop_steps: int = 1_700
    crop_batch: int = 64
    full_steps: int = 500
    full_batch: int = 24
    polish_steps: int = 900
    lr: float = 2e-3
    polish_lr: float = 1.2e-3
    decoder_steps: int = 700
    decoder_batch: int = 24
    decoder_lr: float = 1e-3
    plain_steps: int = 250
    ema_decay: float = 0.98
    revive_every: int = 50
    edge_weight: float = 4.0
    commitment: float = 0.25
    base_channels: int = 64
    channel_multiplier: tuple[int, ...] = (1, 1, 1, 1)
    num_res_blocks: int = 0
    num_embeddings: int = 512
    embed_dim: int = 32
    resolution: int = 64
    precision: PrecisionChoice = "auto"

    def config(self) -> VQConfig:
        """The checkpoint's ``vq_config``.

        No attention in the middle, so that codes stay local; no residual block on the way down (hence one per level on
        the way up): the encoder is a patch embedding and two blocks at 8x8, which makes encoding cheap. 64 channels:
        with 32, the 32 groups of GroupNorm would remove the level of every channel.
        """
        return VQConfig(
            resolution=self.resolution,
            base_channels=self.base_channels,
            channel_multiplier=self.channel_multiplier,
            num_res_blocks=self.num_res_blocks,
            attn_type="none",
            embed_dim=self.embed_dim,
            latent_channels=self.embed_dim,
            num_embeddings=self.num_embeddings,
        )


@torch.no_grad()
def init_weights(model: VQModel, seed: int) -> None:
    """Convolutions that keep the signal's variance, residual branches that start at zero.

    PyTorch's default shrinks the signal at every layer; over the first 150 steps it is 2.7 dB worse.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4:
            gain = 0.0 if name.endswith("conv2.weight") else 1.0
            parameter.normal_(0.0, 1.0, generator=generator).mul_(gain * parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            parameter.zero_()


def make_images(count: int, seed: int, size: int) -> np.ndarray:
    """Images [count, size, size, 3] uint8; image i is a function of (seed, i) alone."""
    out = np.empty((count, size, size, 3), dtype=np.uint8)
    for i in tqdm(range(count), desc="images", mininterval=5):
        out[i] = np.asarray(random_image(random.Random(f"vq-{seed}-{i}")))
    return out


def edge_weights(pixels: Tensor, strength: float) -> Tensor:
    """Weights [B, 1, H, W] >= 1: one plus ``strength`` times the local contrast (the 3x3 range, at most 1)."""
    padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    spread = F.max_pool2d(padded, 3, 1) + F.max_pool2d(-padded, 3, 1)
    return 1.0 + strength * spread.amax(1, keepdim=True).clamp(0.0, 1.0)


def reconstruction_loss(output: Tensor, target: Tensor, strength: float) -> Tensor:
    """Edge-weighted mean of |error| + error^2, a scalar."""
    weight = edge_weights(target, strength)
    error = output.float() - target
    return ((error.abs() + error.square()) * weight).sum() / (weight.sum() * target.shape[1])


class CodebookEMA:
    """The codebook's moving averages: counts [K] and sums [K, D]."""

    def __init__(self, codes: int, width: int, decay: float) -> None:
        self.decay = decay
        self.count = torch.zeros(codes)
        self.total = torch.zeros(codes, width)

    @torch.no_grad()
    def start(self, vectors: Tensor, rounds: int = 12) -> Tensor:
        """Run k-means on random vectors [M, D]; return the codebook [K, D]."""
        codes = len(self.count)
        centres = vectors[torch.randperm(len(vectors))[:codes]].clone()
        for _ in range(rounds):
            nearest = torch.cdist(vectors, centres).argmin(1)
            count = torch.bincount(nearest, minlength=codes).float()
            total = torch.zeros_like(centres).index_add_(0, nearest, vectors)
            empty = count == 0
            centres = torch.where(
                empty[:, None], vectors[torch.randint(len(vectors), (codes,))], total / count.clamp(min=1)[:, None]
            )
        self.count = torch.ones(codes)
        self.total = centres.clone()
        return centres

    @torch.no_grad()
    def update(self, vectors: Tensor, nearest: Tensor) -> Tensor:
        """Fold in one batch (vectors [M, D], nearest [M]) and return the codebook."""
        self.count.mul_(self.decay).add_(
            torch.bincount(nearest, minlength=len(self.count)).float(), alpha=1 - self.decay
        )
        total = torch.zeros_like(self.total).index_add_(0, nearest, vectors)
        self.total.mul_(self.decay).add_(total, alpha=1 - self.decay)
        return self.total / self.count.clamp(min=1e-3)[:, None]

    @torch.no_grad()
    def revive(self, vectors: Tensor, threshold: float = 0.03) -> int:
        """Move codes with counts below ``threshold`` onto random vectors of the batch; return their number."""
        dead = self.count < threshold
        number = int(dead.sum())
        if number:
            self.total[dead] = vectors[torch.randint(len(vectors), (number,))]
            self.count[dead] = 1.0
            self.total[dead] *= self.count[dead][:, None]
        return number


def train_vq(spec: VQSpec, folder: Path, *, resume: bool = False, save_every: int = 250) -> VQModel:
    """Run or resume the stage in ``folder`` and return the trained model in fp32.

    Raises:
        ValueError: ``folder`` has a run with other settings.
    """
    spec, run = _open_run(spec, folder, resume=resume)
    torch.manual_seed(spec.seed)
    model = VQModel(spec.config())
    init_weights(model, spec.seed)
    decoder = [part for part in (model.post_quant_conv, model.decoder) if part is not None]
    optimizer = adamw([model.encoder, model.quant_conv, *decoder], weight_decay=0.0)
    ema = CodebookEMA(spec.num_embeddings, spec.embed_dim, spec.ema_decay)
    first = spec.crop_steps + spec.full_steps
    total = first + spec.polish_steps
    schedule = CosineSchedule(spec.lr, first, warmup=100)
    polish = CosineSchedule(spec.polish_lr, spec.polish_steps)
    start = 0
    if (state := run.load_state()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.count, ema.total, start = state["ema_count"], state["ema_total"], state["step"]
    images = make_images(spec.pictures, spec.seed, spec.resolution)

    def save(step: int) -> None:
        run.save_state(
            {
                "step": step,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema_count": ema.count,
                "ema_total": ema.total,
            }
        )

    with StopFlag() as stop, tqdm(total=total, initial=start, desc="vq", mininterval=5) as bar:
        for step in range(start, total):
            torch.manual_seed(spec.seed * 1_000_003 + step)
            pixels = _batch(images, spec, step)
            if step == spec.plain_steps:
                _start_codebook(model, ema, images, spec)
            lr = schedule.lr(step) if step < first else polish.lr(step - first)
            metrics = _step(model, ema, optimizer, pixels, spec, step, lr)
            if (step + 1) % 25 == 0:
                run.log(step + 1, metrics)
                bar.set_postfix(loss=f"{metrics['loss/reconstruction']:.4f}", psnr=f"{metrics['picture/psnr']:.1f}")
            bar.update()
            if (step + 1) % save_every == 0 or step + 1 == total or stop:
                save(step + 1)
            if stop and step + 1 < total:
                raise KeyboardInterrupt
    return model


def train_decoder(spec: VQSpec, model: VQModel, folder: Path, *, resume: bool = False, save_every: int = 100) -> None:
    """Train the decoder alone, in place, on the codes that a model will draw: encoder and codebook are frozen.

    The codes come from complete chains (:class:`training.data.token_sets.ImageCoder`: unchanged cells keep their
    codes) and single images, half and half. Since codes do not change, already trained transformers remain valid.
    """
    spec, run = _open_run(spec, folder, resume=resume)
    assert model.decoder is not None
    assert model.post_quant_conv is not None
    parts = [model.decoder.requires_grad_(True), model.post_quant_conv.requires_grad_(True)]
    optimizer = adamw(parts, weight_decay=0.0)
    schedule = CosineSchedule(spec.decoder_lr, spec.decoder_steps)
    start = 0
    if (state := run.load_state()) is not None:
        model.decoder.load_state_dict(state["decoder"])
        model.post_quant_conv.load_state_dict(state["post_quant_conv"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    count = max(spec.decoder_batch, min(spec.pictures // 4, 6_000))
    coder = ImageCoder(model)
    chains = [[t.image, *(s.image for s in t.steps)] for t in training_tasks(DECODER_SEEDS, count // 3)]
    codes = [
        row for start_ in range(0, len(chains), 64) for c in coder.chains(chains[start_ : start_ + 64]) for row in c
    ]
    single = make_images(count, spec.seed + 1, spec.resolution)
    images = np.concatenate([np.stack([np.asarray(image) for chain in chains for image in chain]), single])
    table = np.concatenate([np.array(codes, np.int32), coder.encode(single)])
    with StopFlag() as stop, tqdm(total=spec.decoder_steps, initial=start, desc="decoder", mininterval=5) as bar:
        for step in range(start, spec.decoder_steps):
            chosen = np.random.default_rng((spec.seed, 1, step)).integers(len(images), size=spec.decoder_batch)
            pixels = to_pixels(images[chosen])
            set_lr(optimizer, schedule.lr(step))
            with autocast(spec.precision):
                output = model.decode_vectors(model.codebook.detach()[torch.from_numpy(table[chosen]).long()])
            loss = reconstruction_loss(output, pixels, spec.edge_weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
            optimizer.step()
            bar.update()
            if (step + 1) % 25 == 0:
                mse = (output.detach().float().clamp(-1, 1) - pixels).square().mean() / 4.0
                psnr = -10.0 * torch.log10(mse.clamp(min=1e-8)).item()
                run.log(step + 1, {"loss/reconstruction": loss.item(), "picture/psnr": psnr})
                bar.set_postfix(psnr=f"{psnr:.1f}")
            if (step + 1) % save_every == 0 or step + 1 == spec.decoder_steps or stop:
                run.save_state(
                    {
                        "step": step + 1,
                        "decoder": model.decoder.state_dict(),
                        "post_quant_conv": model.post_quant_conv.state_dict(),
                        "optimizer": optimizer.state_dict(),
                    }
                )
            if stop and step + 1 < spec.decoder_steps:
                raise KeyboardInterrupt


def _open_run(spec: VQSpec, folder: Path, *, resume: bool) -> tuple[VQSpec, RunFolder]:
    """The settings with the run's precision, and its folder."""
    spec = replace(spec, precision=run_precision(spec.precision, "cpu", folder, resume=resume))
    return spec, RunFolder(folder, asdict(spec), resume=resume, defaults={"precision": BEFORE_AUTO})


def _batch(images: np.ndarray, spec: VQSpec, step: int) -> Tensor:
    rng = np.random.default_rng((spec.seed, step))
    if step >= spec.crop_steps:
        return to_pixels(images[rng.integers(len(images), size=spec.full_batch)])
    side = spec.resolution >> (len(spec.channel_multiplier) - 1)
    cell = spec.resolution // side
    indices = rng.integers(len(images), size=spec.crop_batch)
    corners = rng.integers((spec.resolution - CROP) // cell + 1, size=(spec.crop_batch, 2)) * cell
    return to_pixels(
        np.stack([images[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(indices, corners, strict=True)])
    )


@torch.no_grad()
def _start_codebook(model: VQModel, ema: CodebookEMA, images: np.ndarray, spec: VQSpec) -> None:
    batches = [to_pixels(images[i : i + 64]) for i in range(0, min(512, len(images)), 64)]
    with autocast(spec.precision):
        vectors = torch.cat([model.features(b).float().flatten(0, 1) for b in batches])
    model.codebook.data.copy_(ema.start(vectors))


def _step(
    model: VQModel,
    ema: CodebookEMA,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    spec: VQSpec,
    step: int,
    lr: float,
) -> dict[str, Any]:
    set_lr(optimizer, lr)
    quantised = step >= spec.plain_steps
    assert model.decoder is not None
    assert model.post_quant_conv is not None
    with autocast(spec.precision):
        z = model.quant_conv(model.encoder(pixels))
    z = z.float()
    vectors = z.permute(0, 2, 3, 1).reshape(-1, spec.embed_dim)
    commitment = torch.zeros(())
    used, revived = 0, 0
    if quantised:
        flat = vectors.detach()
        nearest = model.quantize.nearest(flat)
        used = int(nearest.unique().numel())
        chosen = model.codebook.detach()[nearest]
        commitment = F.mse_loss(vectors, chosen)
        straight = vectors + (chosen - vectors).detach()
        z = straight.view(z.shape[0], z.shape[2], z.shape[3], -1).permute(0, 3, 1, 2).contiguous()
        model.codebook.data.copy_(ema.update(flat, nearest))
        if (step + 1) % spec.revive_every == 0 and lr > 0.3 * spec.polish_lr:
            revived = ema.revive(flat)
    with autocast(spec.precision):
        output = model.decoder(model.post_quant_conv(z))
    reconstruction = reconstruction_loss(output, pixels, spec.edge_weight)
    loss = reconstruction + spec.commitment * commitment
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()
    with torch.no_grad():
        mse = (output.float().clamp(-1, 1) - pixels).square().mean() / 4.0
    return {
        "loss/reconstruction": reconstruction.item(),
        "loss/commitment": commitment.item(),
        "picture/psnr": -10.0 * torch.log10(mse.clamp(min=1e-8)).item(),
        "codes/used": used,
        "codes/revived": revived,
        "optim/grad_norm": norm.item(),
        "optim/lr": lr,
    }
