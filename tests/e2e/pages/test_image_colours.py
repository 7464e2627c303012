"""The image reader decodes colours as a browser does."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from model.images.profiles import SRGB_CURVE, rgb_profile
from model.images.reader import read_image
from tests.e2e.browser import launched, require_browser
from tests.image_files import encoded, gradient, phone_exif, png_file

P3 = rgb_profile((0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290), SRGB_CURVE)
ADOBE = rgb_profile((0.64, 0.33, 0.21, 0.71, 0.15, 0.06, 0.3127, 0.3290), (0, (2.19921875,)))
LOSSY = {"quality": 98, "subsampling": "4:4:4"}
SHOW = """
async (files) => Promise.all(files.map(async (file) => {
  const bytes = Uint8Array.from(atob(file), (c) => c.charCodeAt(0));
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([bytes]));
  await image.decode();
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext('2d', { colorSpace: 'srgb' });
  context.fillStyle = '#fff';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  return [canvas.width, canvas.height, Array.from(pixels)];
}))
"""


def cases() -> Iterator[tuple[str, bytes]]:
    """Names and files."""
    image, palette = gradient(), gradient().quantize(16)
    clear = image.copy()
    clear.putalpha(image.getchannel("R"))
    for profile_name, profile in (("plain", None), ("P3", P3), ("Adobe", ADOBE)):
        more: dict[str, Any] = {} if profile is None else {"icc_profile": profile}
        yield f"PNG {profile_name}", encoded(image, "PNG", **more)
        yield f"JPEG {profile_name}", encoded(image, "JPEG", **LOSSY, **more)
        yield f"WebP {profile_name}", encoded(image, "WEBP", lossless=True, **more)
        yield f"AVIF {profile_name}", encoded(image, "AVIF", **LOSSY, **more)
        yield f"transparent {profile_name}", encoded(clear, "PNG", **more)
        yield f"palette {profile_name}", encoded(palette, "PNG", transparency=bytes(range(0, 256, 16)), **more)
        yield f"grey {profile_name}", encoded(image.convert("L"), "JPEG", quality=98, **more)
    yield "CMYK", encoded(image.convert("CMYK"), "JPEG", quality=98)
    yield "grey with alpha", encoded(Image.merge("LA", (image.getchannel("R"), image.getchannel("G"))), "PNG")
    yield "GIF with a clear colour", encoded(palette, "GIF", transparency=3)
    yield "BMP", encoded(image, "BMP")
    yield "BMP of one bit", encoded(image.convert("1"), "BMP")
    for orientation in range(1, 9):
        exif = phone_exif(orientation)
        yield f"JPEG turned {orientation}", encoded(gradient(32, 16), "JPEG", exif=exif, **LOSSY)
        yield f"PNG turned {orientation}", encoded(gradient(32, 16), "PNG", exif=exif)
        yield f"AVIF turned {orientation}", encoded(gradient(32, 16), "AVIF", exif=exif, **LOSSY)
    grey = b"".join(b"\0" + struct.pack(">32H", *range(0, 65536, 2048)) for _ in range(32))
    yield "16 bits", png_file((32, 32), 16, 0, grey)
    yield "16 dark bits", png_file((32, 32), 16, 0, b"".join(b"\0" + bytes(64) for _ in range(32)))
    yield "16 bits with a clear value", png_file((32, 32), 16, 0, grey, (b"tRNS", struct.pack(">H", 4096)))
    ramp = b"".join(b"\0" + bytes(range(0, 256, 8)) for _ in range(32))
    for gamma in (30_000, 45_455, 100_000, 180_000):
        yield f"gamma {gamma}", png_file((32, 32), 8, 0, ramp, (b"gAMA", struct.pack(">I", gamma)))
    colours = b"".join(b"\0" + bytes(v for x in range(0, 256, 8) for v in (x, y, 128)) for y in range(0, 256, 8))
    for points in ((12, 13), (1, 13), (9, 1), (12, 8)):
        yield f"code points {points}", png_file((32, 32), 8, 2, colours, (b"cICP", bytes([*points, 0, 1])))
    for depth in (1, 2, 4):
        rows = (b"\0" + b"\x1b" * (4 * depth)) * 32
        yield f"{depth} bits with a clear value", png_file((32, 32), depth, 0, rows, (b"tRNS", b"\0\1"))


def test_colours_match_the_browser() -> None:
    require_browser()
    named = list(cases())
    with launched() as browser:
        shown = browser.new_page().evaluate(SHOW, [base64.b64encode(data).decode() for _, data in named])
    wrong = []
    for (name, data), (width, height, pixels) in zip(named, shown, strict=True):
        theirs = np.array(pixels).reshape(height, width, 4)[..., :3]
        ours = np.asarray(read_image(data)).astype(int)
        if ours.shape != theirs.shape or np.abs(ours - theirs).max() > 5:
            wrong.append(name)
    assert wrong == []


def test_comparison_detects_a_lost_profile() -> None:
    plain, wide = (read_image(encoded(gradient(), "PNG", icc_profile=profile)) for profile in (b"", P3))
    difference = np.abs(np.asarray(plain).astype(int) - np.asarray(wide).astype(int)).max()
    assert difference > 20
