"""Truncated images: how much is missing, and decoding the rest.

An image that lacks at most its last row of blocks counts as complete, in every format: a row of pixels of a PNG, GIF or
BMP, 8 or 16 rows of a JPEG, 16 of a WebP, 64 of an AVIF. How far the pixels go:

- PNG: counted, by inflating the data.
- GIF and BMP: complete enough if they decode with the height reduced by one.
- JPEG, WebP, AVIF: padded with two patterns in turn; valid down to the first row in which the two results differ.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Callable

from PIL import Image, ImageChops

from model.images.files import ImageFile, jpeg_segments, png_chunk

Decode = Callable[[bytes], Image.Image]
_PATTERNS = (b"\0", b"\x55", b"\x80", b"\xaa", b"\x2a", b"\x91", b"\xc4", b"\x37")
_BLOCK_ROWS = {"WEBP": 16, "AVIF": 64}
_SMOOTHED = 4  # rows above a block that its neighbour's filters change
_FILL = 65_536
_PIECE = 1 << 20
_REFUSALS = (OSError, RuntimeError, SyntaxError, EOFError)  # raised by decoders
_GREY = (128, 128)  # libjpeg's value for missing blocks


class Incomplete(ValueError):
    """More is missing than the last row of blocks."""


def complete(file: ImageFile, decode: Decode) -> Image.Image:
    """Decode a truncated file, if at most its last row of blocks is missing.

    Args:
        file: the file.
        decode: decoder for this format; may return a smaller image.

    Raises:
        Incomplete: more is missing.
        Exception: errors of `decode` for a file that is broken in another way.
    """
    if file.kind == "PNG":
        return decode(_filled_png(file.data))
    if file.kind == "GIF":
        return _complete_gif(file.data, decode)
    if file.kind == "BMP":
        shorter, above = _shorter_bmp(file.data)
        image = _decoded(shorter, decode)
        return image.crop((0, -above, image.width, image.height + 1 - above))
    if file.kind == "JPEG":
        _require_rows_of_jpeg(file.data, decode)
        return decode(_without_half_a_marker(file.data) + b"\xff\xd9")
    filled = _filled_webp if file.kind == "WEBP" else _filled_avif
    first, second = _first_two(lambda pattern: filled(file.data, pattern), decode)
    _require_rows(first, second, _BLOCK_ROWS[file.kind] + _SMOOTHED)
    return first


def require_whole(file: ImageFile, image: Image.Image, decode: Decode) -> None:
    """Check a JPEG with an end marker whose last rows are grey, as decoders render missing blocks.

    Raises:
        Incomplete: more is missing than its last row of blocks.
    """
    if file.kind != "JPEG" or not file.ended or image.mode not in ("L", "RGB"):
        return
    tail = image.crop((0, max(0, image.height - 8), image.width, image.height)).getextrema()
    if tail == (_GREY if image.mode == "L" else (_GREY,) * 3):
        _require_rows_of_jpeg(file.data[:-2], decode)


# ---- PNG

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _filled_png(data: bytes) -> bytes:
    """Pad the PNG with zeros for the missing bytes.

    Raises:
        Incomplete: more than a row of pixels is missing.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _CHANNELS[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = row = 0
    for left, top, step_x, step_y in passes:
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            row = 1 + -(-columns * bits // 8)
            total += rows * row
    start = data.index(b"IDAT")
    inflater, deflater = zlib.decompressobj(), zlib.compressobj(1)
    deflated, missing = [], total
    left_over = data[start + 4 : -16]  # up to the checksum and the end chunk
    try:
        while missing and left_over and not inflater.eof:
            piece = inflater.decompress(left_over, min(_PIECE, missing))
            left_over = inflater.unconsumed_tail
            missing -= len(piece)
            deflated.append(deflater.compress(piece))
    except zlib.error:
        pass
    if missing > row:
        raise Incomplete(f"{-(-missing // row)} rows of pixels are missing")
    body = b"".join([*deflated, deflater.compress(bytes(missing)), deflater.flush()])
    return data[: start - 4] + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


# ---- GIF and BMP, with the height reduced by one


def _complete_gif(data: bytes, decode: Decode) -> Image.Image:
    """An interlaced GIF is decoded as sequential, so that the missing rows are the last ones."""
    at = 13 + (3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    while data[at] == 0x21:
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    changed = bytearray(data)
    (height,) = struct.unpack_from("<H", data, at + 7)
    if height < 2:
        raise Incomplete("its only row is missing")
    struct.pack_into("<H", changed, at + 7, height - 1)
    struct.pack_into("<H", changed, 8, height - 1)
    flags = data[at + 9]
    changed[at + 9] &= ~0x40
    _shorten_last_block(changed, at + 11 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0))
    stored = _decoded(bytes(changed), decode)
    stored = stored.crop((0, 0, stored.width, height))
    if not flags & 0x40:
        return stored
    image = stored.copy()
    order = (y for first, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for y in range(first, height, step))
    for row, y in enumerate(order):
        image.paste(stored.crop((0, row, stored.width, row + 1)), (0, y))
    return image


def _shorten_last_block(data: bytearray, at: int) -> None:
    """Set a truncated block's length to its actual size: decoders only read complete blocks."""
    while at < len(data) and data[at]:
        if at + 1 + data[at] > len(data):
            data[at] = len(data) - at - 1
            data += b"\0"
            return
        at += 1 + data[at]


def _decoded(data: bytes, decode: Decode) -> Image.Image:
    try:
        return decode(data)
    except _REFUSALS:
        raise Incomplete("more than its last row of pixels is missing") from None


def _shorter_bmp(data: bytes) -> tuple[bytes, int]:
    """With one row less; also the number of missing rows at the top: rows go upwards unless the height is negative."""
    changed = bytearray(data)
    if int.from_bytes(data[14:18], "little") == 12:
        (height,) = struct.unpack_from("<H", data, 20)
        struct.pack_into("<H", changed, 20, height - 1)
    else:
        (height,) = struct.unpack_from("<i", data, 22)
        struct.pack_into("<i", changed, 22, height - 1 if height > 0 else height + 1)
    if abs(height) < 2:
        raise Incomplete("its only row is missing")
    return bytes(changed), int(height > 0)


# ---- padded in two ways


def _first_two(filled: Callable[[bytes], bytes], decode: Decode) -> list[Image.Image]:
    """Images of the first two patterns that decode: some decoders reject some patterns."""
    images: list[Image.Image] = []
    for pattern in _PATTERNS:
        with contextlib.suppress(*_REFUSALS):
            images.append(decode(filled(pattern)))
        if len(images) == 2:
            return images
    raise Incomplete("it is damaged or truncated where no decoder can continue")


def _require_rows(one: Image.Image, other: Image.Image, allowed: int) -> None:
    """Raise Incomplete unless all but the last rows are equal and some rows differ."""
    equal = _equal_rows(one, other)
    if equal < one.height and (equal == 0 or one.height - equal > allowed):
        raise Incomplete(f"{one.height - equal} of {one.height} rows are missing")


def _filled_webp(data: bytes, pattern: bytes) -> bytes:
    """Pad the last chunk to its length and beyond: the made-up data may take more bits."""
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > len(data):
            break
        at += 8 + length + length % 2
    else:
        raise Incomplete("nothing is missing at its end, but it cannot be decoded")
    if at + 8 + length > 2 * len(data) + _FILL:
        raise Incomplete("more than half of it is missing")
    more = 0 if name == b"ANMF" else _FILL
    body = data[at + 8 :]
    body += pattern * (length + length % 2 + more - len(body))
    chunk = struct.pack("<4sI", name, length + more) + body
    return b"".join((b"RIFF", struct.pack("<I", at - 8 + len(chunk)), data[8:at], chunk))


def _filled_avif(data: bytes, pattern: bytes) -> bytes:
    end = _end_of_boxes(data)
    if end <= len(data):
        raise Incomplete("nothing is missing at its end, but it cannot be decoded")
    if end > 2 * len(data) + _FILL:
        raise Incomplete("more than half of it is missing")
    return data + pattern * (end - len(data))


def _end_of_boxes(data: bytes) -> int:
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1 and at + 16 <= len(data):
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0: up to the end of the file
            return len(data)
        at += size
    return at


def _require_rows_of_jpeg(data: bytes, decode: Decode) -> None:
    """`data` lacks its end marker; raise Incomplete if more than the last row of blocks is missing."""
    rows, height = _block_rows(data)
    data = _without_half_a_marker(data)
    one, other = (decode(data + pattern * _FILL + b"\xff\xd9") for pattern in _PATTERNS[:2])
    _require_rows(one, other, -(-rows * one.height // height) + 1)  # may be decoded at a smaller size


def _without_half_a_marker(data: bytes) -> bytes:
    return data.rstrip(b"\xff")


def _block_rows(data: bytes) -> tuple[int, int]:
    """Pixel rows per block row, and in the whole image.

    Raises:
        Incomplete: an entire scan is missing.
    """
    rows, height, left = 8, 1, {}
    for marker, segment in jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            parts = [segment[10 + 3 * i : 13 + 3 * i] for i in range(segment[9])]
            height = int.from_bytes(segment[5:7], "big")
            rows = 8 * max(part[1] & 15 for part in parts) if len(parts) > 1 else 8
            left = {(part[0], k): 16 for part in parts for k in range(64)}
        elif marker == 0xDA:
            count = segment[4]
            start, end, precision = segment[5 + 2 * count : 8 + 2 * count]
            for i in range(count):
                left.update({(segment[5 + 2 * i], k): precision & 15 for k in range(start, min(end, 63) + 1)})
    if not left or any(left.values()):
        raise Incomplete("a pass over the whole image is missing")
    return rows, max(height, 1)


def _equal_rows(one: Image.Image, other: Image.Image) -> int:
    """Number of rows from the top in which two images are equal."""
    if one.mode not in ("L", "RGB"):
        one, other = one.convert("RGBA"), other.convert("RGBA")
    difference = ImageChops.difference(one, other)
    box = difference.getbbox(alpha_only=False)
    return one.height if box is None else box[1]
