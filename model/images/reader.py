"""The only decoder of image bytes, with the result that browsers show; docs/images.md has the rules.

Used by uploads, data URLs and data sets. Reads PNG, JPEG, WebP, GIF, BMP and AVIF, independent of the file name; other
files are rejected with a description of their type. The result is upright RGB in sRGB on white, at most `MAX_SIDE`
pixels per side. Conversions run band by band, so that an image needs little more memory than its decoder.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from model.images.files import ImageFile, orientation_of, take_apart
from model.images.kinds import READABLE, kind_of
from model.images.profiles import Transform, to_srgb_transform
from model.images.repair import Incomplete, complete, require_whole

MAX_PIXELS = 40_000_000
MAX_WEBP_PIXELS = 32_000_000  # Pillow's decoder holds four copies of a WebP image
MAX_SIDE = 4096
MAX_RATIO = 32  # of the longer to the shorter side

_TOO_LARGE = f"an image may have {MAX_PIXELS // 1_000_000} megapixels; make it smaller"
_WEBP_TOO_LARGE = f"a WebP image may have {MAX_WEBP_PIXELS // 1_000_000} megapixels; make it smaller, or send a JPEG"
_BAND_PIXELS = 1 << 20
_WHITE = (255, 255, 255)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """The bytes are not a readable image: `code` for programs, `detail` for people.

    Codes: ``unsupported_image``, ``image_broken``, ``image_too_large``, ``image_too_narrow``.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


def read_image(data: bytes) -> Image.Image:
    """Decode an image as a browser shows it: RGB in sRGB, without metadata, at most `MAX_SIDE` pixels per side.

    Raises:
        ImageError: unsupported, too large, too narrow, or broken.
    """
    file, size = _checked(data)
    try:
        source, factor = _decode(file, size)
        image = _in_srgb(source, file, factor)
        # JPEG, PNG and WebP come without EXIF; an AVIF's EXIF reflects its own properties.
        orientation = orientation_of(source.info.get("exif")) if file.kind == "AVIF" else file.orientation
    except Incomplete as error:
        raise ImageError("image_broken", f"the image is cut off: {error}; save it again and retry") from None
    except (MemoryError, ImageError):
        raise
    except Exception:  # a decoder raises anything for broken bytes
        raise ImageError("image_broken", "the image is damaged; save it again and retry") from None
    return turned(image, orientation)


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels before rotation, from the header alone; None if that requires decoding.

    Raises:
        ImageError: the header is invalid; see :func:`read_image`.
    """
    return _checked(data)[1]


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Rotate an image by its EXIF orientation (1 to 8)."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def on_white(image: Image.Image, transform: Transform | None = None, key: tuple[int, ...] | None = None) -> Image.Image:
    """Convert an image of any mode to RGB on white.

    Args:
        image: 16-bit greys always use the full 16-bit scale.
        transform: from its mode without transparency to RGB in sRGB; None if the values are sRGB.
        key: the transparent colour.
    """
    image, alpha = _split(image, key)
    rgb = image.convert("RGB") if transform is None else transform(image)
    if alpha is None:
        return rgb
    white = Image.new("RGB", image.size, _WHITE)
    white.paste(rgb, mask=alpha)
    return white


def _split(image: Image.Image, key: tuple[int, ...] | None) -> tuple[Image.Image, Image.Image | None]:
    """Split an image into L, RGB or CMYK, and its transparency (L)."""
    mode = image.mode
    if mode.startswith("I"):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
        alpha = _unlike(values, key[0]) if key else None
        return Image.fromarray(((values * 255 + 32_767) // 65_535).astype(np.uint8)), alpha
    if mode in ("1", "F"):
        image = image.convert("L")
    if key is not None and image.mode in ("L", "RGB"):
        return image, _unlike(np.asarray(image), key if image.mode == "RGB" else key[0])
    if mode in ("LA", "La"):
        image = image.convert("LA")
        return image.getchannel("L"), image.getchannel("A")
    if mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return image.convert("RGB"), image.getchannel("A")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB"), None


def _unlike(values: np.ndarray, key: int | tuple[int, ...]) -> Image.Image:
    same = values == np.asarray(key)
    return Image.fromarray(np.where(same.all(-1) if same.ndim == 3 else same, 0, 255).astype(np.uint8))


# ---- bytes to an image of any mode


def _checked(data: bytes) -> tuple[ImageFile, tuple[int, int] | None]:
    """The parsed file and its size; unsupported types and sizes are rejected before decoding."""
    kind = kind_of(data)
    if kind not in READABLE:
        raise ImageError("unsupported_image", f"this is {kind}; send a PNG, JPEG, WebP, GIF, BMP or AVIF image")
    try:
        file = take_apart(kind, data)
        size = file.canvas[:2] if file.canvas else _open(file.data, kind).size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError("image_too_large", _TOO_LARGE) from None
    except MemoryError:
        raise
    except Exception:
        if kind not in ("WEBP", "AVIF"):  # those two are opened completely or not at all
            raise ImageError("image_broken", f"the header of this {kind} image is damaged") from None
        return file, None
    _check_size(size, kind)
    return file, size


def _check_size(size: tuple[int, int], kind: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError("image_broken", f"an image of {width} × {height} pixels is empty")
    if width * height > MAX_PIXELS:
        raise ImageError("image_too_large", f"{width} × {height} pixels are too many: {_TOO_LARGE}")
    if kind == "WEBP" and width * height > MAX_WEBP_PIXELS:
        raise ImageError("image_too_large", f"{width} × {height} pixels are too many: {_WEBP_TOO_LARGE}")
    if max(size) > MAX_RATIO * min(size):
        ratio = f"{width} × {height} pixels are {max(size) / min(size):.0f} : 1"
        detail = f"{ratio}, and a side may be at most {MAX_RATIO} times the other; cut the image into pieces"
        raise ImageError("image_too_narrow", detail)


def _open(data: bytes, kind: str) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=(kind,))


def _decode(file: ImageFile, size: tuple[int, int] | None) -> tuple[Image.Image, int]:
    """The decoded image, and the factor by which it still has to shrink."""
    factor = 1 if size is None else _factor(size)
    drafted = min(8, factor & -factor) if file.kind == "JPEG" else 1  # decodes at a half, a quarter or an eighth

    def load(data: bytes) -> Image.Image:
        image = _open(data, file.kind)
        if size is None:
            _check_size(image.size, file.kind)
        if drafted > 1:
            image.draft(None, (image.width // drafted, image.height // drafted))
        image.load()
        return image

    try:
        image = load(file.data)
    except (MemoryError, ImageError):
        raise
    except Exception as error:
        try:
            image = complete(file, load)
        except (MemoryError, ImageError, Incomplete):
            raise
        except Exception:
            raise error from None
    else:
        require_whole(file, image, load)
    return image, _factor(image.size) if size is None else factor // drafted


def _factor(size: tuple[int, int]) -> int:
    return -(-max(size) // MAX_SIDE)


# ---- to sRGB on white, smaller


def _in_srgb(source: Image.Image, file: ImageFile, factor: int) -> Image.Image:
    profile = file.profile or source.info.get("icc_profile")
    grey = source.mode in ("1", "L", "LA", "La") or source.mode.startswith("I")
    transform = to_srgb_transform(profile, "CMYK" if source.mode == "CMYK" else "L" if grey else "RGB")
    width, height, left, top = file.canvas or (*source.size, 0, 0)
    out = Image.new("RGB", (-(-width // factor), -(-height // factor)), _WHITE)
    rows = max(1, _BAND_PIXELS // (width * factor)) * factor
    for start in range(0, height, rows):
        band = Image.new("RGB", (width, min(rows, height - start)), _WHITE)
        first, last = max(start, top), min(start + rows, top + source.height)
        if first < last:
            part = source.crop((0, first - top, source.width, last - top))
            band.paste(on_white(part, transform, file.key), (left, first - start))
        out.paste(band.reduce(factor) if factor > 1 else band, (0, start // factor))
    return out
