"""Image codes kept across jobs: nothing is encoded twice, other weights share nothing, and no file stops a job."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint.checkpoint import load_checkpoint
from model.nets.vq import VQModel
from training.data.code_cache import PLACE, CodeCache
from training.data.token_sets import ImageCoder


@pytest.fixture
def vq(tiny_checkpoint: Path) -> VQModel:
    model = load_checkpoint(tiny_checkpoint).vq
    assert model is not None
    return model


@pytest.fixture
def encoded(vq: VQModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the encoder got."""
    seen: list[int] = []
    features = vq.features

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return features(pixels)

    monkeypatch.setattr(vq, "features", counted)
    return seen


def some_images(vq: VQModel, count: int, seed: int = 0) -> np.ndarray:
    side = vq.config.resolution
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def coder(vq: VQModel, home: Path, most_bytes: int = 1 << 30) -> ImageCoder:
    return ImageCoder(vq, known=CodeCache(home / PLACE, vq, most_bytes=most_bytes))


def test_an_image_is_encoded_once(vq: VQModel, encoded: list[int], tmp_path: Path) -> None:
    """Repeated ones within a job too; the codes are those without a cache."""
    images = some_images(vq, 5)
    plain = ImageCoder(vq).encode(images)
    encoded.clear()
    first = coder(vq, tmp_path).encode(images[[0, 1, 1, 2]])
    assert sum(encoded) == 3
    again = coder(vq, tmp_path).encode(images)
    assert sum(encoded) == 5
    assert np.array_equal(coder(vq, tmp_path).encode(images), plain)
    assert sum(encoded) == 5
    assert np.array_equal(first, plain[[0, 1, 1, 2]])
    assert np.array_equal(again, plain)


def test_other_weights_share_nothing(vq: VQModel, encoded: list[int], tmp_path: Path) -> None:
    """A changed encoder or codebook; the decoder does not matter."""
    images = some_images(vq, 2)
    coder(vq, tmp_path).encode(images)
    assert vq.decoder is not None
    with torch.no_grad():
        next(vq.decoder.parameters()).add_(1.0)
        coder(vq, tmp_path).encode(images)
        assert sum(encoded) == 2
        for weight in (next(vq.encoder.parameters()), vq.codebook):
            encoded.clear()
            weight.add_(0.01)
            coder(vq, tmp_path).encode(images)
            assert sum(encoded) == 2


@pytest.mark.parametrize("damage", ["no database", "torn", "wrong rows", "wrong types", "a folder"])
def test_a_damaged_file_costs_time_only(vq: VQModel, tmp_path: Path, damage: str) -> None:
    images = some_images(vq, 40)
    plain = coder(vq, tmp_path).encode(images)
    file = tmp_path / PLACE
    if damage == "no database":
        file.write_bytes(b"\xff" * 5000)
    elif damage == "torn":
        file.write_bytes(file.read_bytes()[:4096] + b"\xff" * 4096)
    elif damage == "wrong rows":
        with sqlite3.connect(file) as db:
            db.execute("UPDATE codes SET codes = X'FFFF' WHERE rowid % 2")
            db.execute("UPDATE codes SET codes = ? WHERE rowid % 2 = 0", (b"\xff" * 4 * plain.shape[1],))
    elif damage == "wrong types":
        with sqlite3.connect(file) as db:
            db.execute("UPDATE codes SET codes = CASE WHEN rowid % 2 THEN 5 ELSE 'x' END")
    else:
        file.unlink()
        file.mkdir()
    for _ in range(2):
        assert np.array_equal(coder(vq, tmp_path).encode(images), plain)
    if damage in ("no database", "torn"):
        cache = CodeCache(file, vq)
        cache.keep(cache.keys(images), plain)
        assert len(cache.find(cache.keys(images))) == len(images), "it has begun anew"


def test_size_is_bounded_and_the_newest_stay(vq: VQModel, tmp_path: Path) -> None:
    most = 200_000
    cache = CodeCache(tmp_path / PLACE, vq, most_bytes=most)
    codes = np.zeros((100, vq.config.codes_per_image), np.int32)
    for part in range(40):
        cache.keep([f"{part}-{k}".encode() * 4 for k in range(100)], codes)
    assert (tmp_path / PLACE).stat().st_size < 1.5 * most
    assert len(cache.find([b"39-7" * 4, b"39-99" * 4])) == 2
    assert not cache.find([b"0-7" * 4])


def test_two_jobs_write_at_once(vq: VQModel, tmp_path: Path) -> None:
    images = some_images(vq, 64)
    plain = ImageCoder(vq).encode(images)

    def job(number: int) -> bool:
        mine = CodeCache(tmp_path / PLACE, vq)
        keys = mine.keys(images)
        for start in range(0, 64, 8):
            at = slice(start, start + 8) if number % 2 else slice(56 - start, 64 - start)
            mine.keep(keys[at], plain[at])
        return mine._usable

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(job, range(4)))
    cache = CodeCache(tmp_path / PLACE, vq)
    found = cache.find(cache.keys(images))
    assert np.array_equal(np.stack([found[key] for key in cache.keys(images)]), plain)


def test_only_jobs_of_a_home_have_one(vq: VQModel, tmp_path: Path) -> None:
    assert CodeCache.of_job(tmp_path / "elsewhere", vq) is None
    cache = CodeCache.of_job(tmp_path / "jobs" / "job_1", vq)
    assert cache is not None
    cache.keep(cache.keys(some_images(vq, 1)), np.zeros((1, vq.config.codes_per_image), np.int32))
    assert (tmp_path / PLACE).is_file()
