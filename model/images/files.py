"""Splits encoded images: Pillow decodes the first frame without metadata; everything else is parsed here.

Text, EXIF and colour profiles are read with bounds and ignored when invalid, since they must not decide whether the
pixels can be read. Everything is slicing of the file's own structure; no pixel is decoded. A truncated file is taken as
far as it goes: :mod:`model.images.repair` measures how much is missing.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from model.images.profiles import Primaries, profile_of_code_points, profile_of_gamma

MAX_PROFILE_BYTES = 16_000_000
_EXIF_ENTRIES = 4096


@dataclass(frozen=True)
class ImageFile:
    """One encoded image.

    Attributes:
        kind: Pillow's name of the format.
        data: the bytes to decode.
        profile: the ICC profile of its colours, if it has one.
        orientation: EXIF's, 1 to 8; 1 if unreadable.
        key: the transparent colour, at 8 bits a channel (16 where the image has one channel of 16).
        canvas: width and height of a GIF's screen, and where its first frame lies on it (x, y).
        ended: whether a JPEG's end marker was found.
    """

    kind: str
    data: bytes
    profile: bytes | None = None
    orientation: int = 1
    key: tuple[int, ...] | None = None
    canvas: tuple[int, int, int, int] | None = None
    ended: bool = True


def take_apart(kind: str, data: bytes) -> ImageFile:
    """Split a file of one of :data:`model.images.kinds.READABLE`.

    Raises:
        ValueError: the header is broken.
    """
    try:
        return _READERS[kind](data)
    except (struct.error, IndexError) as error:
        raise ValueError(f"the header is broken: {error}") from None


def orientation_of(exif: bytes | None) -> int:
    """EXIF's orientation, 1 to 8; 1 if missing, unreadable or out of range. Other tags are ignored."""
    if not exif:
        return 1
    tiff = exif[6:] if exif.startswith(b"Exif\0") else exif
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(min(count, _EXIF_ENTRIES)):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, start + 2 + 12 * entry)
            if tag == 0x0112 and kind in (3, 4):  # SHORT; some cameras write LONG
                (value,) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", tiff, start + 10 + 12 * entry)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


# ---- PNG


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Build a chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png(data: bytes) -> ImageFile:
    header, palette, transparency, pixels = b"", b"", None, []
    about: dict[bytes, bytes] = {}
    for name, body, whole in _png_chunks(data):
        if name in (b"IHDR", b"PLTE") and not whole:
            raise ValueError(f"its {name.decode()} chunk is damaged")
        if name == b"IHDR":
            header = header or body
        elif name == b"PLTE":
            palette = palette or body
        elif name == b"tRNS" and whole:
            transparency = body
        elif name == b"IDAT":
            pixels.append(body)
        elif name == b"IEND":
            break
        elif name in (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"eXIf") and whole:
            about.setdefault(name, body)
    if len(header) != 13 or not pixels:
        raise ValueError("it has no header or no pixels")
    depth, colour = header[8], header[9]
    chunks = [png_chunk(b"IHDR", header)]
    if palette:
        chunks.append(png_chunk(b"PLTE", palette))
    key = None
    if transparency is not None:
        if colour == 3:
            chunks.append(png_chunk(b"tRNS", transparency[: len(palette) // 3]))
        elif len(transparency) == {0: 2, 2: 6}.get(colour):
            values = struct.unpack(f">{len(transparency) // 2}H", transparency)
            key = values if colour == 0 and depth == 16 else tuple(_to_8_bits(value, depth) for value in values)
    chunks += [png_chunk(b"IDAT", b"".join(pixels)), png_chunk(b"IEND", b"")]
    return ImageFile(
        "PNG",
        data[:8] + b"".join(chunks),
        profile=_png_profile(about),
        orientation=orientation_of(about.get(b"eXIf")),
        key=key,
    )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield name and body of every chunk, and whether its checksum is right; the last body may be truncated."""
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        check = data[at + 8 + length : at + 12 + length]
        yield name, body, name == b"IDAT" or check == struct.pack(">I", zlib.crc32(name + body))
        at += 12 + length


def _to_8_bits(value: int, depth: int) -> int:
    if depth == 16:
        return value >> 8
    top: int = 2**depth - 1
    return (value & top) * 255 // top


def _png_profile(about: Mapping[bytes, bytes]) -> bytes | None:
    """Colour profile in PNG's order of precedence: cICP, iCCP, sRGB, gAMA with cHRM."""
    if len(code_points := about.get(b"cICP", b"")) == 4:
        return profile_of_code_points(code_points[0], code_points[1])
    if b"iCCP" in about:
        _, _, rest = about[b"iCCP"].partition(b"\0")
        try:
            return zlib.decompressobj().decompress(rest[1:], MAX_PROFILE_BYTES) or None
        except zlib.error:
            return None
    if b"sRGB" in about:
        return None
    gamma, primaries = None, None
    if len(about.get(b"gAMA", b"")) == 4:
        gamma = int.from_bytes(about[b"gAMA"], "big") / 100_000
    if len(about.get(b"cHRM", b"")) == 32:
        white_x, white_y, *rest_xy = (value / 100_000 for value in struct.unpack(">8I", about[b"cHRM"]))
        primaries = _primaries(*rest_xy, white_x, white_y)
    return profile_of_gamma(gamma, primaries)


def _primaries(*values: float) -> Primaries:
    red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y = values
    return red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y


# ---- JPEG

_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, segment bytes) of a JPEG after its first two bytes; a scan includes its coded pixels.

    Ends after the end marker or at the truncation; an incomplete segment is left out.
    """
    at = 2
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            found = _NEXT_MARKER.search(data, at)  # garbage between segments; decoders skip it
            if found is None:
                return
            at = found.end() - 2
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xD9:
            yield marker, data[at : at + 2]
            return
        if marker in _STANDALONE or marker == 0xD8:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if length < 2 or end > len(data):
            return
        if marker == 0xDA:
            found = _NEXT_MARKER.search(data, end)
            end = found.end() - 2 if found else len(data)
        yield marker, data[at:end]
        at = end


def _jpeg(data: bytes) -> ImageFile:
    kept: dict[int | tuple[int, int], bytes] = {}
    exif, profile, ended = None, [], False
    for marker, segment in jpeg_segments(data):
        body = segment[4:]
        if marker == 0xE1 and body.startswith(b"Exif\0"):
            exif = exif or body
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
            profile.append((body[12:13], body[14:]))
        elif marker in (0xE0, 0xEE):  # JFIF and Adobe define how colours are stored
            kept.setdefault(marker, segment)
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept[marker, len(kept)] = segment
        ended |= marker == 0xD9
    joined = b"".join(part for _, part in sorted(profile, key=lambda numbered: numbered[0]))
    return ImageFile("JPEG", data[:2] + b"".join(kept.values()), joined or None, orientation_of(exif), ended=ended)


# ---- WebP


def _webp(data: bytes) -> ImageFile:
    """The chunks with pixels; for animations those of the first frame. The last one may be truncated."""
    kept: list[bytes] = []
    about: dict[bytes, bytes] = {}
    at, end, missing = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little")), 0
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : min(at + 8 + length, end)]
        if name in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            if name == b"VP8X":
                body = bytes([body[0] & 0x12]) + body[1:]  # keeps the alpha and animation flags
            missing = length - len(body)
            kept.append(struct.pack("<4sI", name, length) + body + b"\0" * (0 if missing else length % 2))
            if name in (b"VP8 ", b"VP8L", b"ANMF"):
                break
        elif name in (b"ICCP", b"EXIF"):
            about.setdefault(name, body)
        at += 8 + length + length % 2
    exif = about.get(b"EXIF") or _webp_exif(data, at)
    joined = b"".join(kept)
    whole = b"RIFF" + struct.pack("<I", 4 + len(joined) + missing + (missing and length % 2)) + b"WEBP" + joined
    return ImageFile("WEBP", whole, about.get(b"ICCP"), orientation_of(exif))


def _webp_exif(data: bytes, at: int) -> bytes | None:
    """EXIF chunk after the pixels."""
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF":
            return data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return None


# ---- GIF


def _gif(data: bytes) -> ImageFile:
    """The first frame on a screen of its own size, with its transparency."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _table_bytes(flags)
    table = data[13:at]
    control = b""
    while at < len(data):
        mark = data[at]
        if mark == 0x21:
            start = at
            label = data[at + 1]
            at = _after_blocks(data, at + 2)[0]
            control = data[start:at] if label == 0xF9 else control
        elif mark == 0x2C:
            left, top, wide, high, local = struct.unpack_from("<HHHHB", data, at + 1)
            body_at = at + 10 + _table_bytes(local)
            end, ended = _after_blocks(data, body_at + 1)
            if not wide or not high or body_at >= len(data):
                break
            screen = struct.pack("<HHBBB", wide, high, flags, 0, 0)
            frame = struct.pack("<BHHHHB", 0x2C, 0, 0, wide, high, local) + data[at + 10 : end]
            canvas = max(width, left + wide), max(height, top + high), left, top
            alone = canvas == (wide, high, 0, 0)
            whole = data[:6] + screen + table + control + frame + (b";" if ended else b"")
            return ImageFile("GIF", whole, canvas=None if alone else canvas)
        elif mark == 0x3B:
            break
        else:
            at += 1
    raise ValueError("it has no frame")


def _table_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> tuple[int, bool]:
    """End offset of a sequence of data blocks, and whether its terminator was found."""
    while at < len(data):
        size = data[at]
        at += 1 + size
        if size == 0:
            return at, True
    return len(data), False


# ---- BMP and AVIF


def _bmp(data: bytes) -> ImageFile:
    return ImageFile("BMP", data)


_EXIF_ITEM = re.compile(rb"(infe.{8,10}?)Exif", re.S)
_BOX_HEAD = 65_536


def _avif(data: bytes) -> ImageFile:
    """Drop the EXIF item: an AVIF is rotated by its own properties, which the decoder reports as EXIF."""
    head = _EXIF_ITEM.sub(rb"\1free", data[:_BOX_HEAD])
    profile, at = None, head.find(b"colrnclx")
    if at >= 0 and b"colrprof" not in head and b"colrrICC" not in head:
        primaries, transfer = struct.unpack_from(">HH", head, at + 8)
        profile = profile_of_code_points(primaries, 13 if transfer in (1, 6, 14, 15) else transfer)  # as browsers do
    return ImageFile("AVIF", head + data[_BOX_HEAD:], profile)


_READERS: Mapping[str, Callable[[bytes], ImageFile]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
    "AVIF": _avif,
}
