"""Measures the scale of the perception score for a checkpoint's codebook, and writes it into its manifest.

Without it R_Pe has no cap: a blank or nearly blank canvas scores almost 1 (docs/method).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from model.checkpoint.checkpoint import load_vq
from model.checkpoint.manifest import Manifest, Perception
from model.checkpoint.parts import weights_of
from model.checkpoint.shards import CheckpointError, read_entries
from model.config import ConfigError, ModelConfig
from model.images.codes import encode_images, perception_of
from model.images.reader import ImageError, read_image
from model.nets.vq import VQModel

LEAST_IMAGES = 20
_BATCH = 16
_KINDS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif"}


def calibrate(checkpoint: str | Path, images: str | Path) -> tuple[Perception, int]:
    """Measure the scale with all images below a folder and write it into ``manifest.json``; return both.

    Files that the manifest lists must still be those; a folder without a manifest gets its derived one.

    Raises:
        CheckpointError: the checkpoint is not usable, or has no VQ.
        ValueError: fewer than `LEAST_IMAGES` different images, one that cannot be read, or mostly blank ones.
    """
    folder = Path(checkpoint)
    weights = weights_of(folder)
    try:
        config = ModelConfig.read(weights)
    except ConfigError as error:
        raise CheckpointError("unsupported", str(error)) from error
    read_entries(weights)
    manifest = Manifest.read(folder)
    manifest.verify_hashes(folder)
    vq = load_vq(weights, config)
    codes = [grid for batch in _batches(images_in(Path(images))) for grid in _encoded(vq, batch)]
    different = len(set(codes))
    if different < LEAST_IMAGES:
        raise ValueError(f"{images} holds {different} different images; at least {LEAST_IMAGES} give a scale")
    perception = perception_of(vq, codes)
    if perception.tau <= 0:
        raise ValueError(f"more than half of the images in {images} are blank: they give no scale")
    replace(manifest, perception=perception).write(folder)
    return perception, len(codes)


def images_in(folder: Path) -> Iterator[Path]:
    """The image files below a folder, in order of their paths."""
    return iter(sorted(path for path in folder.rglob("*") if path.suffix.lower() in _KINDS and path.is_file()))


def _batches(paths: Iterable[Path]) -> Iterator[list[Path]]:
    rest = iter(paths)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def _encoded(vq: VQModel, paths: list[Path]) -> list[tuple[int, ...]]:
    images = []
    for path in paths:
        try:
            images.append(read_image(path.read_bytes()))
        except ImageError as error:
            raise ValueError(f"{path}: {error}") from error
    return encode_images(vq, images)
