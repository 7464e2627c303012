"""One bucket, or a folder that stands for one, through obstore. Blocking; knows nothing of the studio.

Credentials, region and endpoint come from the AWS_* variables that obstore reads. An upload is atomic: readers see the
whole object or the one before.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CONNECT_S = 5.0
SILENT_S = 10.0  # a store that sends nothing for that long does not answer
REQUEST_S = 120.0  # for one part: 8 MiB at 70 kB/s
RETRIES, RETRY_S = 2, 10.0
PART_BYTES = 8 << 20
AT_ONCE = 3  # parts of one file
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_ENDPOINT = re.compile(r"https?://([\w.-]+|\[[\da-f:.]+\])(:\d+)?(/[\w./~-]*)?", re.ASCII | re.IGNORECASE)
ROLES = ("AWS_METADATA_ENDPOINT", "http://169.254.169.254")  # obstore asks there only without other credentials


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

    def __init__(self, url: str, *, retries: int | None = None) -> None:
        """Contacts nothing; raises StoreRefused without the package or for settings that it rejects.

        A failed request is tried `retries` times more, by default RETRIES.
        """
        self.url = url
        try:
            import obstore
            from obstore.store import from_url
        except ImportError:
            raise StoreRefused("OMNI_R1_STORE needs obstore: pip install 'omni-r1-studio[store]'") from None
        self._obstore = obstore
        tries = RETRIES if retries is None else retries
        options: dict[str, Any] = {"mkdir": True} if url.startswith("file:") else _s3_options(tries)
        try:
            self._store: ObjectStore = from_url(self.url, **options)
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise StoreRefused(f"{self.url} cannot be used: {_line(error)}") from None

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
            if os.environ.get(*ROLES) in str(error):
                wanted = f"set {' and '.join(CREDENTIALS)}, or give this machine a role"
                raise StoreDown(f"{self.url}: there are no credentials: {wanted}") from None
            raise StoreDown(f"{self.url} does not answer: {_line(error)}") from None
        except BaseException as error:
            if type(error).__module__ != "pyo3_runtime":  # a panic in Rust, which is no Exception
                raise
            raise StoreRefused(f"{self.url} cannot be used: {_line(error)}; check the AWS_ variables") from None


def _s3_options(retries: int) -> dict[str, Any]:
    """Refuses what obstore panics at or misunderstands."""
    for name, value in os.environ.items():
        if name.startswith("AWS_") and not value.isprintable():
            raise StoreRefused(f"{name} has a line break or another character that cannot be sent")
    given = [os.environ.get(name) for name in CREDENTIALS]
    if any(value is not None for value in given) and not all(given):
        raise StoreRefused(f"{' and '.join(CREDENTIALS)} belong together: set both, or neither where there is a role")
    endpoints = {name: os.environ[name] for name in ENDPOINTS if name in os.environ}
    for name, value in endpoints.items():
        if not _is_endpoint(value):
            raise StoreRefused(f"{name} must be like https://host:port; unset it for Amazon's S3")
    return {
        "client_options": {
            "allow_http": any(value.lower().startswith("http://") for value in endpoints.values()),  # it is wanted
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "read_timeout": timedelta(seconds=SILENT_S),
            "timeout": timedelta(seconds=REQUEST_S),
        },
        "retry_config": {"max_retries": retries, "retry_timeout": timedelta(seconds=RETRY_S)},
    }


def _is_endpoint(value: str) -> bool:
    try:
        return bool(_ENDPOINT.fullmatch(value)) and urlsplit(value).port != 0
    except ValueError:  # a port above 65535, or an impossible IPv6 address
        return False


def _line(error: BaseException) -> str:
    """The error's first line, short; obstore's messages name request and status, but no credentials."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first if len(first) <= 300 else f"{first[:299]}…"
