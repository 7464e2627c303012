"""Rows of data sets: jsonl, parquet and the folders that `datasets` writes, on disk or on the hub, with file and line.

Errors in a row become a :class:`Rejection` with location and reason, and reading continues.
:mod:`training.data.row_images` opens the images in rows. Knows no fields, models or tokens.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from training.data.hub import SUFFIXES, hub_files, is_hub
from training.data.row_images import DataError, SampleError, find_value, open_value

__all__ = [
    "DataError",
    "Intake",
    "Rejection",
    "Row",
    "SampleError",
    "attempted",
    "data_files",
    "open_value",
    "parse_line",
    "parsed",
    "read_parsed",
    "read_rows",
]

MAX_LINE_BYTES = 256_000_000
OPTIONAL = frozenset({"image", "images", "choices", "options", "slice", "id"})  # fields that a row may lack
_BATCH = 4  # rows of a table in memory at once: images are large

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Row:
    """One raw row of a file.

    Attributes:
        file: its file.
        number: line of a jsonl, row of other files, from 1.
        data: its fields.
        image_size: target size of :meth:`image`; None keeps the original size.
        decode: whether :meth:`image` decodes; else it only checks the image's kind and returns a blank one.
    """

    file: Path
    number: int
    data: Mapping[str, Any]
    image_size: int | None = None
    decode: bool = True

    @property
    def where(self) -> str:
        """``file:line``."""
        return f"{self.file.name}:{self.number}"

    def image(self, value: Any) -> Image.Image:
        """Open the image in a field as the model sees it; see :func:`training.data.row_images.open_value`."""
        if not self.decode:
            return find_value(value, self.file.parent)
        return open_value(value, self.file.parent, self.image_size)


@dataclass(frozen=True)
class Rejection:
    """A rejected sample: its location, a code for programs and the reason for people."""

    where: str
    code: str
    detail: str


def data_files(path: str | Path) -> list[Path]:
    """List the files of a data set, sorted: one file, or every jsonl, parquet and arrow file below a folder.

    Raises:
        DataError: there are no files of a known kind.
    """
    path = Path(path)
    if _is_file(path):
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path.name} does not end in {', '.join(SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist")
    found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and _is_file(file))
    if not found:
        raise DataError(f"{path} has no file that ends in {', '.join(SUFFIXES)}")
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # below a folder without access
        return False


def read_rows(
    path: str | Path,
    image_size: int | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    decode: bool = True,
) -> Iterator[Row | Rejection]:
    """Read every row of a file or folder, ordered by name and line.

    Args:
        path: of a file or folder, or an address on the hub, whose files are fetched on the way.
        image_size: pixels a side of the model that the images are for.
        columns: the data's own names of fields, by ours: ``{"question": "query", "answer": "labels.text"}``.
        decode: see :class:`Row`.

    Raises:
        DataError: see :func:`data_files` and :func:`training.data.hub.hub_files`.
    """
    for file in hub_files(str(path)) if is_hub(path) else data_files(path):
        rows = _jsonl(file) if file.suffix == ".jsonl" else _table(file)
        for number, data in rows:
            if isinstance(data, SampleError):
                yield Rejection(f"{file.name}:{number}", data.code, data.detail)
            else:
                try:
                    named = _renamed(data, columns) if columns else data
                except SampleError as error:
                    yield Rejection(f"{file.name}:{number}", error.code, error.detail)
                else:
                    yield Row(file, number, named, image_size, decode)


def _renamed(data: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with our names of its fields; an optional one that it lacks stays absent.

    Raises:
        SampleError: ``missing_column``.
    """
    found = {name: _field(data, column) for name, column in columns.items()}
    for name, value in found.items():
        if value is None and name not in OPTIONAL:
            has = ", ".join(map(str, list(data)[:20])) or "nothing"
            raise SampleError("missing_column", f"no column {columns[name]!r} for {name!r}; the row has {has}")
    kept = {name: value for name, value in data.items() if name not in columns}
    return kept | {name: value for name, value in found.items() if value is not None}


def _field(data: Mapping[str, Any], column: str) -> Any:
    """A field by its name, or by the names on the way to it, with dots."""
    if column in data:
        return data[column]
    outer, _, inner = column.partition(".")
    within = data.get(outer)
    return _field(within, inner) if inner and isinstance(within, Mapping) else None


def read_parsed(
    path: str | Path,
    parse: Callable[[Row], Sample],
    image_size: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Sample | Rejection]:
    """Read and ``parse`` every row, or yield a rejection with file and line; arguments as for :func:`read_rows`.

    Raises:
        DataError: as :func:`read_rows`.
    """
    for row in read_rows(path, image_size, columns=columns):
        yield row if isinstance(row, Rejection) else parsed(row, parse)


def parsed(row: Row, parse: Callable[[Row], Sample]) -> Sample | Rejection:
    """Parse a row; any exception rejects the row."""
    return attempted(row.where, lambda: parse(row))


def attempted(where: str, make: Callable[[], Sample]) -> Sample | Rejection:
    """The result of `make`, or a rejection of the sample at `where`: no exception of one sample ends a job."""
    try:
        return make()
    except SampleError as error:
        return Rejection(where, error.code, error.detail)
    except MemoryError:
        raise
    except Exception as error:
        detail = str(SampleError("broken_row", f"{type(error).__name__}: {error}"))
        return Rejection(where, "broken_row", detail)


Numbered = Iterator[tuple[int, dict[str, Any] | SampleError]]


def _jsonl(file: Path) -> Numbered:
    number = 0
    try:
        with file.open("rb") as lines:
            while line := lines.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    while not line.endswith(b"\n") and (line := lines.readline(MAX_LINE_BYTES)):
                        pass
                    yield number, SampleError("broken_line", f"longer than {MAX_LINE_BYTES} bytes")
                elif line.strip():
                    try:
                        data: dict[str, Any] | SampleError = parse_line(line, first=number == 1)
                    except SampleError as error:
                        data = error
                    yield number, data
    except OSError as error:
        yield number + 1, SampleError("broken_file", f"unreadable from here on: {error.strerror or error}")


def parse_line(line: bytes, *, first: bool = False) -> dict[str, Any]:
    """Parse a line of a jsonl file; the first line may start with a byte order mark.

    Raises:
        SampleError: ``broken_line``.
    """
    try:
        data = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
        if rb"\ud" in line.lower():  # lone surrogates are valid JSON, but cannot be stored or tokenised
            json.dumps(data, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        hint = " (it begins like UTF-16: save it as UTF-8)" if first and line.startswith(marks) else ""
        raise SampleError("broken_line", f"not UTF-8{hint}: {error}") from None
    except UnicodeEncodeError:
        raise SampleError("broken_line", "half of a character (a lone surrogate)") from None
    except json.JSONDecodeError as error:
        raise SampleError("broken_line", f"no JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:
        raise SampleError("broken_line", f"no JSON: {error}") from None
    if not isinstance(data, dict):
        raise SampleError("broken_line", "no JSON object")
    return data


def _table(file: Path) -> Numbered:
    number = 0
    try:
        for batch in _batches(file):
            for at in range(batch.num_rows):
                number += 1
                try:
                    data = batch.slice(at, 1).to_pylist()[0]
                except Exception as error:  # not UTF-8, a date out of range, …
                    data = SampleError("broken_row", f"{type(error).__name__}: {error}")
                yield number, data
    except ImportError:
        yield number + 1, SampleError("broken_file", "this kind of file needs pyarrow: install omni-r1-studio[train]")
    except Exception as error:  # pyarrow raises errors of many kinds for a file that is broken
        yield number + 1, SampleError("broken_file", f"unreadable from here on: {error}")


def _batches(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        with pq.ParquetFile(
            file, buffer_size=1 << 20
        ) as table:  # page by page instead of a whole column of a row group
            yield from table.iter_batches(batch_size=_BATCH)
        return
    with pa.memory_map(str(file)) as source:
        try:
            reader: Any = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:  # `datasets` writes streams, other tools write files
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(reader)
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH):
                yield batch.slice(start, _BATCH)


@dataclass(frozen=True)
class Intake:
    """Number of samples read, and the rejected ones."""

    kept: int
    rejected: tuple[Rejection, ...] = ()

    @property
    def total(self) -> int:
        """Samples read."""
        return self.kept + len(self.rejected)

    def summary(self) -> str:
        """One sentence with counts by reason and the first location of each."""
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

    def shortfall(self, wanted: int | None) -> str | None:
        """What to warn about if the data has fewer rows than the `num_samples` of a specification."""
        if wanted is None or self.total >= wanted:
            return None
        return f"num_samples is {wanted:,}, but the data has only {self.total:,} rows: all of them were read"

    def to_json(self, limit: int = 200) -> dict[str, Any]:
        """Counts, and the first ``limit`` rejections in full."""
        return {
            "kept": self.kept,
            "rejected": len(self.rejected),
            "reasons": dict(Counter(r.code for r in self.rejected)),
            "first": [asdict(r) for r in self.rejected[:limit]],
        }

    def write(self, path: Path) -> None:
        """Write every rejection, one JSON object per line."""
        path.write_text(_jsonl_text(asdict(r) for r in self.rejected), "utf-8", "replace")


def _jsonl_text(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
