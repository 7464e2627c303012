"""Rows of data sets from disk: jsonl, parquet and the folders that `datasets` writes, each with its file and line.

A row that cannot be read is told as a :class:`Rejection` with its place and does not end the reading. Pictures in rows
come as paths, base64, data URLs, bytes or the objects that `datasets` writes; :func:`open_value` opens all of them.
Knows no fields, models or tokens.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError

SUFFIXES = (".jsonl", ".parquet", ".arrow")
MAX_PIXELS = 64_000_000
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_BATCH = 32  # rows of a parquet file that are in memory at once: pictures are large


Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Row:
    """One row as it stands in its file; ``number`` counts lines of a jsonl and rows of other files, from 1."""

    file: Path
    number: int
    data: Mapping[str, Any]

    @property
    def where(self) -> str:
        """``file:line``."""
        return f"{self.file.name}:{self.number}"


@dataclass(frozen=True)
class Rejection:
    """A sample that was left out: where it stands, a code for programs and the reason for people."""

    where: str
    code: str
    detail: str


class SampleError(ValueError):
    """This sample cannot be used; the others can."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


class DataError(ValueError):
    """The data set as a whole cannot be used."""


def data_files(path: str | Path) -> list[Path]:
    """The files of a data set, sorted: one file, or every jsonl, parquet and arrow file below a folder.

    Raises:
        DataError: nothing is there, or nothing of a known kind.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path.name} is none of {', '.join(SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist")
    found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not found:
        raise DataError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}")
    return found


def read_rows(path: str | Path) -> Iterator[Row | Rejection]:
    """Every row of a file or folder, in the order of names and lines.

    Raises:
        DataError: see :func:`data_files`.
    """
    for file in data_files(path):
        yield from _jsonl(file) if file.suffix == ".jsonl" else _table(file)


def read_parsed(path: str | Path, parse: Callable[[Row], Sample]) -> Iterator[Sample | Rejection]:
    """Every row as ``parse`` reads it; one for which it raises SampleError is told with its file and line.

    Raises:
        DataError: see :func:`data_files`.
    """
    for row in read_rows(path):
        if isinstance(row, Rejection):
            yield row
            continue
        try:
            yield parse(row)
        except SampleError as error:
            yield Rejection(row.where, error.code, error.detail)


def _jsonl(file: Path) -> Iterator[Row | Rejection]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield Row(file, number, parse_line(line, first=number == 1))
            except SampleError as error:
                yield Rejection(f"{file.name}:{number}", error.code, error.detail)


def parse_line(line: bytes, *, first: bool = False) -> dict[str, Any]:
    """The object that a line of a jsonl file holds; the first line may begin with a byte order mark.

    Raises:
        SampleError: ``broken_line``.
    """
    try:
        data = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
        if rb"\ud" in line.lower():  # half a character is JSON, and no text that could be stored or tokenised
            json.dumps(data, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise SampleError("broken_line", f"not UTF-8: {error}") from None
    except UnicodeEncodeError:
        raise SampleError("broken_line", "half of a character (a lone surrogate)") from None
    except (ValueError, RecursionError) as error:
        raise SampleError("broken_line", f"no JSON: {error}") from None
    if not isinstance(data, dict):
        raise SampleError("broken_line", "no JSON object")
    return data


def _table(file: Path) -> Iterator[Row | Rejection]:
    import pyarrow as pa

    number = 0
    try:
        for batch in _batches(file):
            for data in batch.to_pylist():
                number += 1
                yield Row(file, number, data)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        yield Rejection(f"{file.name}:{number + 1}", "broken_file", f"unreadable from here on: {error}")


def _batches(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        with pq.ParquetFile(file) as table:
            yield from table.iter_batches(batch_size=_BATCH)
        return
    with pa.memory_map(str(file)) as source:
        try:
            reader: Any = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:  # `datasets` writes streams, others files
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(reader)
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH):
                yield batch.slice(start, _BATCH)


def is_picture(value: Any) -> bool:
    """Whether a field's value can hold a picture (and is not a list of token ids)."""
    return isinstance(value, str | bytes | Image.Image) or (
        isinstance(value, Mapping) and ("bytes" in value or "path" in value)
    )


def open_value(value: Any, folder: Path) -> Image.Image:
    """The picture in a field.

    Args:
        value: a path below ``folder``, base64, a data URL, bytes, ``{"bytes": ..., "path": ...}`` or a picture.
        folder: of the data file; a path may not lead out of it.

    Raises:
        SampleError: ``missing_picture`` or ``broken_picture``.
    """
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, Mapping):
        inner = value.get("bytes") or value.get("path")
        if inner is None or isinstance(inner, Mapping):
            raise SampleError("missing_picture", "the picture has neither bytes nor a path")
        return open_value(inner, folder)
    if isinstance(value, str):
        return _open_bytes(_bytes_of_text(value, folder))
    if isinstance(value, bytes | bytearray):
        return _open_bytes(bytes(value))
    raise SampleError("broken_picture", f"a picture cannot be made of {type(value).__name__}")


def _bytes_of_text(text: str, folder: Path) -> bytes:
    text = text.strip()
    encoded = _DATA_URL.match(text)
    if encoded is None and len(text) < 1024:
        root, path = folder.resolve(), (folder / text).resolve()
        if path.is_relative_to(root) and path.is_file():
            return path.read_bytes()
        if Path(text).suffix:
            raise SampleError("missing_picture", f"there is no picture {text!r} below the data's folder")
    try:
        return base64.b64decode(text[encoded.end() :] if encoded else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleError("broken_picture", f"neither a path nor base64: {text[:40]!r}") from error


def _open_bytes(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise SampleError("broken_picture", f"{image.width} x {image.height} pixels are too many")
        image.load()
    except UnidentifiedImageError as error:
        raise SampleError("broken_picture", "the bytes are no picture") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError("broken_picture", f"the picture is broken: {error}") from error
    return image


@dataclass(frozen=True)
class Intake:
    """How many samples were read and which were left out."""

    kept: int
    rejected: tuple[Rejection, ...] = ()

    @property
    def total(self) -> int:
        """Samples read."""
        return self.kept + len(self.rejected)

    def summary(self) -> str:
        """One sentence with counts by reason and the first place of each."""
        if not self.rejected:
            return f"all {self.kept} samples are usable"
        first: dict[str, Rejection] = {}
        for rejection in self.rejected:
            first.setdefault(rejection.code, rejection)
        counts = Counter(r.code for r in self.rejected)
        reasons = "; ".join(
            f"{count} {code} (first {first[code].where}: {first[code].detail})" for code, count in counts.most_common()
        )
        return f"{len(self.rejected)} of {self.total} samples were left out: {reasons}"

    def to_json(self, limit: int = 200) -> dict[str, Any]:
        """Counts, and the first ``limit`` rejections by name."""
        return {
            "kept": self.kept,
            "rejected": len(self.rejected),
            "reasons": dict(Counter(r.code for r in self.rejected)),
            "first": [asdict(r) for r in self.rejected[:limit]],
        }

    def write(self, path: Path) -> None:
        """Every rejection, one JSON object a line."""
        path.write_text(_jsonl_text(asdict(r) for r in self.rejected), "utf-8", "replace")


def _jsonl_text(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
