"""Image <-> codes, partial images, and image statistics from codes.

Pixels go to the VQ as x * 2/255 - 1, exactly. transformers' own preprocessor file for the 7B rounds the factor to
0.0078, which makes white 0.989; Meta's VQ was trained with 2/255, so every checkpoint uses that here, and so does the
``preprocessor_config.json`` of every checkpoint saved here.

Shapes: B batch, R resolution, N codes per image, H x W grid (H * W = N), D codebook width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.checkpoint.manifest import Perception
from model.checkpoint.memory import LARGE_GPU, image_work
from model.images.guards import copied_share as copied_share
from model.images.guards import flatness as flatness
from model.images.guards import is_flat as is_flat
from model.images.guards import perception_score as perception_score
from model.images.view import Fit, model_view
from model.nets.vq import VQModel

WORK_BYTES = 1 << 30
DECODED_TOGETHER = 4  # on a large GPU, in bf16; `MemoryNeeds.room` counts them
_T = TypeVar("_T")


def to_pixels(images: Sequence[Image.Image], device: str | torch.device = "cpu") -> Tensor:
    """RGB images of one size R x R to pixels [B, 3, R, R] in [-1, 1], fp32."""
    arrays = np.stack([np.asarray(image.convert("RGB"), dtype=np.uint8) for image in images])
    pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2).to(device)
    return pixels.to(torch.float32).mul(2.0 / 255.0).sub(1.0).contiguous()


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pixels [B, 3, R, R] in [-1, 1] to RGB images (values outside are clamped)."""
    levels = pixels.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]


def encode_images(
    vq: VQModel, images: Sequence[bytes | Image.Image], fits: Sequence[Fit] | None = None
) -> list[tuple[int, ...]]:
    """Encode images of any size, cropped or padded to the model's view (``fits``, default crop)."""
    if not images:
        return []
    fits = fits or ["crop"] * len(images)
    views = [model_view(image, vq.config, fit) for image, fit in zip(images, fits, strict=True)]
    codes = [vq.encode(to_pixels(part, vq.codebook.device)) for part in _parts(views, _together(vq))]
    return [tuple(row) for part in codes for row in part.tolist()]


def _parts(images: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _together(vq: VQModel) -> int:
    """Images whose activations stay within `WORK_BYTES`: one at a time at the 7B's size."""
    return max(1, WORK_BYTES // image_work(vq.config))


def _decoded_together(vq: VQModel) -> int:
    """As `_together`, and at least `DECODED_TOGETHER` on a large GPU."""
    device = vq.codebook.device
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[1] >= LARGE_GPU:
        return max(DECODED_TOGETHER, _together(vq))
    return _together(vq)


def decode_codes(vq: VQModel, codes: Sequence[Sequence[int]]) -> list[Image.Image]:
    """Decode complete code grids of N codes each.

    Raises:
        ValueError: the checkpoint has no decoder, or a grid is not of N codes.
    """
    if not codes:
        return []
    wanted = vq.config.codes_per_image
    for grid in codes:
        if len(grid) != wanted:
            raise ValueError(f"an image has {wanted} codes, got {len(grid)}")
    parts = _parts([list(grid) for grid in codes], _decoded_together(vq))
    return [image for part in parts for image in to_images(vq.decode(torch.tensor(part, device=vq.codebook.device)))]


def decode_partial(vq: VQModel, known: Sequence[int], previous: Sequence[int] | None = None) -> Image.Image:
    """Decode the first k codes, completed by :func:`fill_codes`, as a preview of the image."""
    return decode_codes(vq, [fill_codes(vq, known, previous)])[0]


def fill_codes(vq: VQModel, known: Sequence[int], previous: Sequence[int] | None = None) -> list[int]:
    """N codes: ``known`` first, then those of the previous image; without one, the code nearest to the known mean."""
    total = vq.config.codes_per_image
    if len(known) >= total:
        return list(known[:total])
    if previous is not None and len(previous) == total:
        return [*known, *previous[len(known) :]]
    book = vq.codebook.detach().float()
    seen = book[torch.tensor(list(known), device=book.device)] if known else book
    nearest = int((book - seen.mean(0)).square().sum(1).argmin())
    return [*known, *[nearest] * (total - len(known))]


def tv_energy(vectors: Tensor) -> Tensor:
    """Total-variation energy E_2D [...] of embedded code grids [..., H, W, D] (method, Eqs. 4-7).

    E_h and E_v are the mean squared L2 distances of horizontal and vertical neighbours; E_2D = (E_h + E_v) / D.
    """
    vectors = vectors.float()

    def mean_square(difference: Tensor) -> Tensor:
        squares = difference.square().sum(-1).flatten(-2)
        return squares.mean(-1) if squares.shape[-1] else squares.new_zeros(squares.shape[:-1])

    horizontal = mean_square(vectors[..., :, 1:, :] - vectors[..., :, :-1, :])
    vertical = mean_square(vectors[..., 1:, :, :] - vectors[..., :-1, :, :])
    return (horizontal + vertical) / vectors.shape[-1]


def image_energies(vq: VQModel, images: Sequence[Sequence[int]]) -> list[float]:
    """E_2D of images given by their complete code grids."""
    if not images:
        return []
    book = vq.codebook.detach()
    vectors = book[torch.tensor([list(codes) for codes in images], device=book.device)]
    return [float(energy) for energy in tv_energy(vectors.unflatten(1, vq.config.grid))]


def perception_of(vq: VQModel, codes: Sequence[Sequence[int]]) -> Perception:
    """The scale of reference images given by their codes.

    tau is their median energy, so that a typical drawing scores one half: the score is steepest there.
    """
    energies = torch.tensor(image_energies(vq, codes))
    return Perception(
        tau=round(float(energies.median()), 4),
        energy_p95=round(float(energies.quantile(0.05)), 4),
        flat_share_max=round(max(map(flatness, codes)), 4),
    )


@dataclass(frozen=True)
class ImageStats:
    """Statistics of one generated image.

    Attributes:
        codes: number of different codes.
        flatness: share of the most common code.
        tv: E_2D of its codes.
        perception_reward: its R_Pe, 0 for a flat image.
    """

    codes: int
    flatness: float
    tv: float
    perception_reward: float

    def to_json(self) -> dict[str, float]:
        """As in ``image.completed``."""
        return {key: round(value, 6) for key, value in asdict(self).items()}


def image_stats(vq: VQModel, codes: Sequence[int], perception: Perception | None = None) -> ImageStats:
    """Statistics of a complete code grid under the checkpoint's perception scale (default tau 3.0)."""
    perception = perception or Perception()
    (energy,) = image_energies(vq, [codes])
    score = 0.0 if is_flat(codes, perception, energy) else perception_score(energy, perception)
    return ImageStats(len(set(codes)), flatness(codes), energy, score)
