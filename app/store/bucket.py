"""One bucket, or a folder that stands for one, through obstore. Blocking; knows nothing of the studio.

Credentials, region and endpoint come from the AWS_* variables that obstore reads. An upload is atomic: readers see the
whole object or the one before.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CONNECT_S = 5.0
SILENT_S = 10.0  # a store that sends nothing for that long does not answer
REQUEST_S = 120.0  # for one part: 8 MiB at 70 kB/s
RETRIES, RETRY_S = 2, 10.0
PART_BYTES = 8 << 20
AT_ONCE = 3  # parts of one file


class StoreError(RuntimeError):
    """The store failed; the message is one line without credentials."""


class StoreDown(StoreError):
    """It did not answer, or could not: it may later."""


class StoreRefused(StoreError):
    """It answered no: credentials, rights, or no such bucket."""


class NoObject(StoreError):
    """It has no such object."""


class Bucket:
    """The objects below one URL; keys are relative to it."""

    def __init__(self, url: str) -> None:
        """Contacts nothing; raises StoreError without the package or for settings that it rejects."""
        self.url = url
        try:
            import obstore
            from obstore.store import from_url
        except ImportError:
            raise StoreRefused("OMNI_R1_STORE needs obstore: pip install 'omni-r1-studio[store]'") from None
        self._obstore = obstore
        options: dict[str, Any] = {"mkdir": True} if url.startswith("file:") else _s3_options()
        with self._plain():
            self._store: ObjectStore = from_url(self.url, **options)

    def probe(self) -> None:
        """Write, read and delete an object; raises StoreError."""
        key, data = f"probe-{uuid.uuid4().hex}", b"omni-r1"
        self.write(key, data)
        if self.read(key) != data:
            raise StoreRefused(f"{self.url} does not return what was written")
        self.delete([key])

    def upload(self, file: Path, key: str) -> None:
        """Store a file; raises StoreError, or FileNotFoundError if the file is missing."""
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing")
        with self._plain(writes=True):
            self._obstore.put(self._store, key, file, chunk_size=PART_BYTES, max_concurrency=AT_ONCE)

    def write(self, key: str, data: bytes) -> None:
        """Store a small object; raises StoreError."""
        with self._plain(writes=True):
            self._obstore.put(self._store, key, data)

    def read(self, key: str) -> bytes:
        """A small object; raises StoreError."""
        with self._plain():
            return bytes(self._obstore.get(self._store, key).bytes())

    def pieces(self, key: str, size: int) -> Iterator[bytes]:
        """An object of `size` bytes, piece by piece; raises StoreError."""
        for start in range(0, size, PART_BYTES):
            with self._plain():
                piece = bytes(
                    self._obstore.get_range(self._store, key, start=start, length=min(PART_BYTES, size - start))
                )
            yield piece

    def keys(self, prefix: str) -> Iterator[list[str]]:
        """The keys below a folder, in lists; raises StoreError."""
        with self._plain():
            for chunk in self._obstore.list(self._store, prefix, chunk_size=1000):
                yield [found["path"] for found in chunk]

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, those that exist; raises StoreError."""
        for key in keys if self.url.startswith("file:") else ():  # of a list it stops at the first that is missing
            with contextlib.suppress(NoObject), self._plain():
                self._obstore.delete(self._store, key)
        if not self.url.startswith("file:"):
            with self._plain():
                self._obstore.delete(self._store, list(keys))

    @contextlib.contextmanager
    def _plain(self, *, writes: bool = False) -> Iterator[None]:
        """Turn obstore's errors into ours; nothing to find is no answer to a write."""
        errors = self._obstore.exceptions
        try:
            yield
        except (FileNotFoundError, errors.NotFoundError) as error:
            if writes or "NoSuchBucket" in str(error):
                raise StoreRefused(f"{self.url}: there is no such bucket") from None
            raise NoObject(_line(error)) from None
        except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
            raise StoreRefused(f"{self.url} refuses these credentials: {_line(error)}") from None
        except (errors.BaseError, OSError) as error:
            raise StoreDown(f"{self.url} does not answer: {_line(error)}") from None


def _s3_options() -> dict[str, Any]:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return {
        "client_options": {
            "allow_http": endpoint.startswith("http://"),  # the operator wrote it so
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "read_timeout": timedelta(seconds=SILENT_S),
            "timeout": timedelta(seconds=REQUEST_S),
        },
        "retry_config": {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S)},
    }


def _line(error: Exception) -> str:
    """The error's first line, short; obstore's messages name request and status, but no credentials."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first if len(first) <= 300 else f"{first[:299]}…"
