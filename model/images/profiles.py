"""Colour profiles -> a transform to sRGB. Unreadable profiles, and those for another mode, are ignored."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

Transform = Callable[[Image.Image], Image.Image]
Primaries = tuple[float, float, float, float, float, float, float, float]  # x, y of red, green, blue and white

SRGB: Primaries = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
_BY_CODE: dict[int, Primaries] = {  # ITU-T H.273, ColourPrimaries
    1: SRGB,
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290),
}
Curve = tuple[int, tuple[float, ...]]  # kind and parameters of ICC's parametricCurveType
SRGB_CURVE: Curve = (3, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
_CURVES: dict[int, Curve] = {  # ITU-T H.273, TransferCharacteristics, without those of HDR
    **dict.fromkeys((1, 6, 14, 15), (0, (2.4,))),  # as shown on a video display (BT.1886)
    4: (0, (2.2,)),
    5: (0, (2.8,)),
    8: (0, (1.0,)),
    13: SRGB_CURVE,
}
_MODE_OF = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])


def to_srgb_transform(profile: bytes | None, mode: str) -> Transform | None:
    """Transform from `mode` (L, RGB or CMYK) to sRGB; a grey image may have an RGB profile.

    None if the values are sRGB already or `profile` is unusable.
    """
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        takes = _MODE_OF.get(source.profile.xcolor_space, "")
        if takes != mode and (takes, mode) != ("RGB", "L"):
            return None
        if takes == "RGB" and (source.profile.profile_description or "").startswith("sRGB"):
            return None
        target = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, target, takes, "RGB", ImageCms.Intent.PERCEPTUAL)
        transform.apply(Image.new(takes, (1, 1)))
    except Exception:  # littlecms and Pillow raise anything for a broken profile
        return None

    def apply(image: Image.Image) -> Image.Image:
        return transform.apply(image if image.mode == takes else image.convert(takes))

    return apply


def profile_of_code_points(primaries: int, transfer: int) -> bytes | None:
    """The profile for H.273 code points (`cICP` of a PNG, `nclx` of an AVIF); None for sRGB and unknown ones."""
    found, curve = _BY_CODE.get(primaries), _CURVES.get(transfer)
    if found is None or curve is None or (found, curve) == (SRGB, SRGB_CURVE):
        return None
    return rgb_profile(found, curve)


def profile_of_gamma(gamma: float | None, primaries: Primaries | None) -> bytes | None:
    """The profile for a PNG's `gAMA` (the encoding exponent) and `cHRM`; None if sRGB or invalid."""
    same_primaries = primaries is None or np.abs(np.subtract(primaries, SRGB)).max() < 0.005
    if same_primaries and (gamma is None or abs(gamma - 1 / 2.2) < 0.02):
        return None
    if gamma is not None and not 0.1 <= gamma <= 10:
        return None
    return rgb_profile(primaries or SRGB, SRGB_CURVE if gamma is None else (0, (1 / gamma,)))


def rgb_profile(primaries: Primaries, curve: Curve) -> bytes | None:
    """Build an ICC profile from primaries and a curve; None for impossible primaries."""
    try:
        columns = _adapted_columns(primaries)
    except (np.linalg.LinAlgError, ZeroDivisionError, FloatingPointError):
        return None
    if not np.isfinite(columns).all() or np.abs(columns).max() > 100:
        return None
    kind, values = curve
    curve_tag = b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + b"".join(_fixed(value) for value in values)
    tags = [(f"{name}XYZ".encode(), _xyz(columns[:, i])) for i, name in enumerate("rgb")]
    tags += [(f"{name}TRC".encode(), curve_tag) for name in "rgb"] + [(b"wtpt", _xyz(_D50))]
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags:
        data += b"\0" * (-len(data) % 4)
        table += struct.pack(">4sII", name, offset + len(body), len(data))
        body += data
    header = struct.pack(
        ">I4sI4s4s4s12s4s", offset + len(body), b"\0\0\0\0", 0x04200000, b"mntr", b"RGB ", b"XYZ ", b"\0" * 12, b"acsp"
    ).ljust(68, b"\0")
    header += b"".join(_fixed(value) for value in _D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _adapted_columns(primaries: Primaries) -> np.ndarray:
    """XYZ of red, green and blue as columns, adapted from their own white to D50 (Bradford)."""
    red, green, blue, white = (_xyz_of(*primaries[i : i + 2]) for i in range(0, 8, 2))
    matrix = np.stack([red, green, blue], 1)
    matrix = matrix * np.linalg.solve(matrix, white)
    scale = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    adapted: np.ndarray = np.linalg.inv(_BRADFORD) @ scale @ _BRADFORD @ matrix
    return adapted


def _xyz_of(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(_fixed(value) for value in values)


def _fixed(value: float) -> bytes:
    """s15Fixed16."""
    return struct.pack(">i", round(value * 65536))
