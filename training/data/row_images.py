"""The images in rows: paths, base64, data URLs, bytes or the objects that `datasets` writes, read like uploads.

:mod:`model.images.reader` has the rule for formats, sizes and colours. Each image is resized to the model's size right
after reading, so that photos are never in memory at full size.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from model.images.kinds import READABLE, kind_of
from model.images.reader import ImageError, read_image
from model.images.view import model_view

MAX_FILE_BYTES = 200_000_000
MAX_DETAIL = 500
HEAD_BYTES = 4096  # enough to detect a file's kind
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_WEB_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/_-]")
_URL_SAFE = str.maketrans("-_", "+/")
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_LONGEST_PATH = 4096
_LONGEST_NAME = 255
_SHORTEST_BASE64 = 64  # below it, text that decodes to no image is a word
_BLANK = Image.new("RGB", (1, 1))


class SampleError(ValueError):
    """This sample is unusable; the others are not affected. `detail` is cut to `MAX_DETAIL` characters."""

    def __init__(self, code: str, detail: str) -> None:
        detail = detail if len(detail) <= MAX_DETAIL else f"{detail[: MAX_DETAIL - 1]}…"
        super().__init__(detail)
        self.code, self.detail = code, detail


class DataError(ValueError):
    """The data set as a whole cannot be used."""


def is_image(value: Any) -> bool:
    """Whether a field's value can be an image (and not a list of token ids)."""
    return isinstance(value, str | bytes | Image.Image) or (
        isinstance(value, Mapping) and ("bytes" in value or "path" in value)
    )


def open_value(value: Any, folder: Path, size: int | None = None) -> Image.Image:
    """Open the image in a field: upright RGB in sRGB.

    Args:
        value: a path below ``folder``, base64, a data URL, bytes, ``{"bytes": ..., "path": ...}`` or an image.
        folder: of the data file; paths must stay inside it.
        size: pixels per side of the model's view; None returns the original.

    Raises:
        SampleError: ``missing_picture`` or ``broken_picture``.
    """
    if isinstance(value, Image.Image):
        return value if size is None else model_view(value, size)
    try:
        image = read_image(_bytes_of(value, folder))
    except ImageError as error:
        words = "the bytes are not a supported image: " if error.code == "unsupported_image" else ""
        raise SampleError("broken_picture", words + error.detail) from None
    return image if size is None else model_view(image, size)


def find_value(value: Any, folder: Path) -> Image.Image:
    """Find the image in a field and check its kind by its first bytes, without decoding; returns a blank image.

    Raises:
        SampleError: as :func:`open_value`, except for damage behind the first bytes.
    """
    if not isinstance(value, Image.Image):
        kind = kind_of(_bytes_of(value, folder, HEAD_BYTES))
        if kind not in READABLE:
            raise SampleError("broken_picture", f"the bytes are not a supported image: {kind}")
    return _BLANK


def _bytes_of(value: Any, folder: Path, most: int | None = None) -> bytes:
    """The encoded image in a field; of a file only the first `most` bytes."""
    if isinstance(value, Mapping):
        inner = value.get("bytes") or value.get("path")
        if inner is None or isinstance(inner, Mapping):
            raise SampleError("missing_picture", "the image has neither bytes nor a path")
        return _bytes_of(inner, folder, most)
    if isinstance(value, str):
        return _bytes_of_text(value.strip(), folder, most)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise SampleError("broken_picture", f"cannot make an image of {type(value).__name__}")


def _bytes_of_text(text: str, folder: Path, most: int | None) -> bytes:
    """Decided by content: base64 of an image, unless a file below the folder has exactly this name, or a path."""
    encoded = _DATA_URL.match(text)
    decoded = _base64(text[encoded.end() :] if encoded else text)
    if encoded:
        if decoded is None:
            raise SampleError("broken_picture", "the base64 in the data URL is broken")
        return decoded
    if decoded is not None and kind_of(decoded) in READABLE:
        is_name = len(text) <= _LONGEST_NAME and os.path.isfile(os.path.join(folder, text))
        if not is_name:
            return decoded
    if 0 < len(text) <= _LONGEST_PATH and "\0" not in text:
        data = _read_file(text, folder, most)
        if data is not None:
            return data
    if decoded is not None and (len(text) >= _SHORTEST_BASE64 or text.endswith("=")):
        return decoded
    if damage := _damage(text):
        raise SampleError("broken_picture", damage)
    if _WEB_ADDRESS.match(text):
        raise SampleError("missing_picture", f"{_shown(text)} is a web address; images are not fetched")
    if len(text) <= _LONGEST_PATH and Path(text).suffix:
        raise SampleError("missing_picture", f"there is no image {_shown(text)} below the data's folder")
    raise SampleError("broken_picture", f"neither a path nor base64: {_shown(text)}")


def _damage(text: str) -> str | None:
    """What is wrong with base64 that begins like an image; None for other text."""
    plain = "".join(text.split())
    wrong = _NOT_BASE64.search(plain.rstrip("="))
    begins = _base64(plain[: min(64, wrong.start() // 4 * 4 if wrong else 64)])
    kind = None if begins is None else kind_of(begins)
    if kind not in READABLE:
        return None
    why = f"character {wrong.start() + 1} is {wrong[0]!r}" if wrong else "it is cut off"
    return f"the base64 of a {kind} image is broken: {why}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:40]}…")


def _base64(text: str) -> bytes | None:
    """The standard or the URL-safe alphabet, padded or not; line breaks are ignored."""
    plain = "".join(text.split()).rstrip("=").translate(_URL_SAFE)
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True) or None
    except (binascii.Error, ValueError):
        return None


def _read_file(name: str, folder: Path, most: int | None = None) -> bytes | None:
    """Read a regular file below the folder, or its first `most` bytes; None if missing.

    Raises:
        SampleError: it exists but cannot be read.
    """
    root = os.path.realpath(folder)
    try:
        path = os.path.realpath(os.path.join(root, name))
        if not Path(path).is_relative_to(root):
            return None
        # Does not block on pipes or acquire a controlling terminal.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except UnicodeEncodeError:
        return None
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise SampleError("broken_picture", f"{_shown(name)} cannot be read: {error.strerror}") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            what = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
            raise SampleError("broken_picture", f"{_shown(name)} is {what}")
        if found.st_size > MAX_FILE_BYTES:
            raise SampleError("broken_picture", f"{_shown(name)} has more than {MAX_FILE_BYTES} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read() if most is None else file.read(most)
    except OSError as error:
        raise SampleError("broken_picture", f"{_shown(name)} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
