"""Turns uploads into stored images, with bounded memory and CPU use.

Small images are decoded here, a few at a time. Large ones are decoded one at a time, each in a process of its own
(:mod:`model.images.child`), so that the memory is freed afterwards and this process stays responsive. Waiting happens
in dedicated threads. All methods block, except `run`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from app.common.locations import ROOT
from app.contract.problems import Problem
from app.storage.images import MAX_UPLOAD_BYTES, ImageStore, StoredImage
from app.storage.uploads import Spool
from model.images.child import REFUSED
from model.images.reader import ImageError, image_size, read_image
from model.images.view import Fit, model_view, png_bytes

SMALL_PIXELS = 1_000_000
SMALL_BYTES = 4_000_000
SMALL_AT_ONCE = 2
WAITING = 16  # threads
DECODE_S = 120.0  # for the largest image, on a busy machine

P = ParamSpec("P")
T = TypeVar("T")


class ImageIntake:
    """Accepts images for one server."""

    def __init__(self, store: ImageStore, spool: Spool) -> None:
        self._store, self._spool = store, spool
        self._threads = ThreadPoolExecutor(WAITING, "images")
        # Few decoder threads: each keeps the memory of its largest image.
        self._decoders = ThreadPoolExecutor(SMALL_AT_ONCE, "decode")
        self._large = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking image work in the dedicated threads."""
        if self._closed:
            raise _stopping()
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    def close(self) -> None:
        """Abort all decoding, running and queued."""
        self._closed = True
        self._threads.shutdown(wait=False)  # queued work still runs, to be rejected
        self._decoders.shutdown(wait=False, cancel_futures=True)
        child = self._child
        if child is not None:
            child.kill()

    def store(self, data: bytes) -> StoredImage:
        """Decode and store an image of any format; raises :class:`Problem`."""
        if stored := self._here(self._store_if_small, data):
            return stored
        with self._spool.file() as path:
            path.write_bytes(data)
            return self._store_large(path)

    def store_file(self, path: Path) -> StoredImage:
        """As `store`, for a file in the home."""
        size = path.stat().st_size
        if size > MAX_UPLOAD_BYTES:
            raise Problem("body_too_large", f"the image has {size} bytes; the limit is {MAX_UPLOAD_BYTES}")
        if size <= SMALL_BYTES:
            stored = self._here(lambda: self._store_if_small(path.read_bytes()))
            if stored is not None:
                return stored
        return self._store_large(path)

    def view(self, image_id: str, resolution: int, fit: Fit) -> bytes:
        """PNG of a stored image as a model of that resolution sees it; raises :class:`Problem`."""
        stored = self._store.get(image_id)
        if stored.width * stored.height <= SMALL_PIXELS:
            return self._here(lambda: png_bytes(model_view(self._store.read(image_id), resolution, fit)))
        path = self._store.file(image_id)
        with self._spool.file() as target:
            self._decode(path, target, str(resolution), fit)
            return target.read_bytes()

    def _here(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a small decoding task in a decoder thread."""
        try:
            return self._decoders.submit(work, *args, **kwargs).result()
        except (CancelledError, RuntimeError):
            if self._closed:
                raise _stopping() from None
            raise

    def _store_if_small(self, data: bytes) -> StoredImage | None:
        """None for an image too large to decode in this process."""
        try:
            size = image_size(data) if len(data) <= SMALL_BYTES else None
            if size is None or size[0] * size[1] > SMALL_PIXELS:
                return None
            image = read_image(data)
        except ImageError as error:
            raise Problem(error.code, error.detail) from None
        return self._store.put(png_bytes(image), image.width, image.height)

    def _store_large(self, path: Path) -> StoredImage:
        with self._spool.file() as target:
            size = self._decode(path, target)
            return self._store.put_file(target, size["width"], size["height"])

    def _decode(self, source: Path, target: Path, *view: str) -> dict[str, Any]:
        """The output of `python -m model.images.child`."""
        command = [sys.executable, "-m", "model.images.child", str(source), str(target), *view]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with self._large:
            if self._closed:
                raise _stopping()
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment
            ) as self._child:
                try:
                    said, _ = self._child.communicate(timeout=DECODE_S)
                except subprocess.TimeoutExpired:
                    self._child.kill()
                    raise Problem("image_broken", "the image takes too long to decode; save it again") from None
                finally:
                    code, self._child = self._child.wait(), None
        if code == REFUSED:
            refusal = json.loads(said)
            raise Problem(refusal["code"], refusal["detail"])
        if self._closed:
            raise _stopping()
        if code != 0:
            raise Problem("image_broken", "the image cannot be decoded; save it again and retry")
        found: dict[str, Any] = json.loads(said)
        return found


def _stopping() -> Problem:
    return Problem("stopping", "the server is stopping")
