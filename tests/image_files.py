"""Image files as made by people, phones and attackers."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from model.images.files import png_chunk

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image in some format."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random RGB; rows compress equally badly in every format."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def gradient(width: int = 32, height: int = 32) -> Image.Image:
    """RGB; red increases to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    values = [x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (width + height - 2)]
    return Image.fromarray(np.stack(values, -1).astype(np.uint8))


def png_file(size: tuple[int, int], depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of raw rows (each with its filter byte), with `chunks` before its pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, body) for name, body in parts)


def with_chunks(png: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """The PNG with more chunks after its header."""
    return png[:33] + b"".join(png_chunk(name, body) for name, body in chunks) + png[33:]


def bomb(width: int, height: int) -> bytes:
    """A complete PNG with palette and transparency, a few kilobytes of one colour."""
    squeeze = zlib.compressobj(9)
    rows = b"".join(squeeze.compress(bytes(width + 1)) for _ in range(height)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = [(b"IHDR", header), (b"PLTE", bytes(768)), (b"tRNS", bytes([128] * 256)), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, body) for name, body in parts)


def phone_exif(orientation: int = 6) -> Image.Exif:
    """As phones write it: camera, times, exposure, a maker's note, a place."""
    exif = Image.Exif()
    exif.update({0x0112: orientation, 0x010F: "Phones", 0x0110: "One", 0x0132: "2024:01:01 00:00:00", 0x011A: 72.0})
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0x9003: "2024:01:01 00:00:00", 0x927C: b"Phones\0\1" + bytes(200)})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    return exif
