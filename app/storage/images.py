"""Images on disk, content-addressed: PNGs are stored once, partial images with their trace.

Files are written under a temporary name, synced and renamed; those that are not here may be in the object store
(:mod:`app.storage.mirror`). All methods block: call them from threads. Other formats
are converted to PNG by :mod:`app.storage.image_intake`. Knows no HTTP.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from PIL import Image
from sqlalchemy.engine import Connection

from app.common.clock import stamp
from app.contract.problems import Problem, field_problem
from app.storage import database, tables
from app.storage.database import Database, now
from app.storage.home import move_durably, write_durably
from app.storage.mirror import Mirror

MAX_UPLOAD_BYTES = 20_000_000
KEEP = timedelta(hours=24)
# `last_used_at` is written at most once an hour per image; the sweep adds that hour.
TOUCH_EVERY = timedelta(hours=1)
PNG_END = b"IEND\xaeB`\x82"
_ID = re.compile(r"[0-9a-f]{64}")
_DATA_URL = re.compile(r"data:image/[\w.+-]+(;[\w=.+-]+)*;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class StoredImage:
    """A stored image."""

    image_id: str
    width: int
    height: int
    is_new: bool = field(default=False, compare=False)  # its file was just written

    def as_json(self) -> dict[str, Any]:
        """The API's JSON."""
        return {"image_id": self.image_id, "url": image_url(self.image_id), "width": self.width, "height": self.height}


def image_url(image_id: str) -> str:
    """The URL path of the image."""
    return f"/v1/images/{image_id}"


def encode_png(image: Image.Image) -> bytes:
    """Encode as PNG without metadata; equal pixels give equal bytes."""
    out = io.BytesIO()
    clean = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())
    clean.save(out, "PNG", compress_level=6)
    return out.getvalue()


def from_data_url(url: str, path: str) -> bytes:
    """Decode a ``data:image/…;base64,`` URL; `path` is the field named in errors."""
    match = _DATA_URL.match(url)
    if match is None:
        raise field_problem(
            "unsupported_url", path, "only data:image/…;base64, URLs are supported; otherwise upload to /v1/images"
        )
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise field_problem("image_broken", path, "the base64 in the data URL is broken") from None


class ImageStore:
    """Content-addressed PNGs under `folder`, their rows in the database."""

    def __init__(self, folder: Path, db: Database, mirror: Mirror | None = None) -> None:
        self._folder = folder
        self._db = db
        self._mirror = mirror or Mirror()
        # The sweep deletes row and file together; storing the same image waits for it.
        self._lock = threading.Lock()
        self._arriving: Counter[str] = Counter()
        self._counting = threading.Lock()  # held only while counting

    def path(self, image_id: str) -> Path:
        """Where the file of `image_id` belongs; raises ``image_not_found`` for malformed ids."""
        if not _ID.fullmatch(image_id):
            raise Problem("image_not_found", "no image has this id; unused images expire after a day: upload it again")
        return self._folder / image_id[:2] / f"{image_id}.png"

    def put(self, png: bytes, width: int, height: int) -> StoredImage:
        """Store an RGB PNG durably; an existing one is only marked as used."""
        stored = StoredImage(_id_of(png), width, height)
        return self._put(stored, len(png), lambda path: write_durably(path, png))

    def put_file(self, file: Path, width: int, height: int) -> StoredImage:
        """Store the RGB PNG in a file of the home by moving it."""
        with file.open("rb") as opened:
            image_id = hashlib.file_digest(opened, "sha256").hexdigest()
        stored = StoredImage(image_id, width, height)
        return self._put(stored, file.stat().st_size, lambda path: move_durably(file, path))

    def _put(self, stored: StoredImage, num_bytes: int, write: Callable[[Path], None]) -> StoredImage:
        path = self.path(stored.image_id)
        with self._lock:
            if not path.exists():
                write(path)
                stored = replace(stored, is_new=True)
            with self._db.write() as connection:
                self.enter(connection, stored, num_bytes)
        return stored

    def bring(self, png: bytes) -> StoredImage:
        """Write a PNG from the engine as it is.

        Its row is added by `enter` in the commit of the event that shows it; until `settle` the sweep keeps the file.
        """
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            width, height = image.size
        image_id = _id_of(png)
        path = self.path(image_id)
        with self._lock, self._counting:
            self._arriving[image_id] += 1
        stored = StoredImage(image_id, width, height)
        try:
            if path.exists():
                return stored
            write_durably(path, png)
        except BaseException:
            self.settle(stored)
            raise
        return replace(stored, is_new=True)

    def enter(self, connection: Connection, image: StoredImage, num_bytes: int) -> None:
        """Add the row of a written image in the caller's transaction, or mark an existing one as used."""
        i, moment = tables.images, now()
        query = sa.update(i).where(i.c.id == image.image_id).values(last_used_at=moment)
        is_known = connection.execute(query).rowcount > 0
        if not is_known:
            row = {"id": image.image_id, "width": image.width, "height": image.height, "bytes": num_bytes}
            connection.execute(sa.insert(i).values(**row, created_at=moment, last_used_at=moment))
        if image.is_new or not is_known:
            self._mirror.put(connection, self.path(image.image_id))

    def settle(self, image: StoredImage) -> None:
        """End the protection by `bring`: the row exists, or never will. Does not block."""
        with self._counting:
            self._arriving[image.image_id] -= 1
            if not self._arriving[image.image_id]:
                del self._arriving[image.image_id]

    def put_image(self, image: Image.Image) -> StoredImage:
        """Store an image made by the server."""
        return self.put(encode_png(image), image.width, image.height)

    def get(self, image_id: str) -> StoredImage:
        """Look up an image and mark it as used; raises ``image_not_found``."""
        self.path(image_id)
        i = tables.images
        with self._db.read() as connection:
            row = connection.execute(sa.select(i).where(i.c.id == image_id)).one_or_none()
        if row is None:
            raise Problem("image_not_found", "no image has this id; unused images expire after a day: upload it again")
        if row.last_used_at < stamp(datetime.now(UTC) - TOUCH_EVERY):
            with self._db.write() as connection:
                connection.execute(sa.update(i).where(i.c.id == image_id).values(last_used_at=now()))
        return StoredImage(row.id, row.width, row.height)

    def file(self, image_id: str) -> Path:
        """The PNG's file, fetched if the home lacks it; raises ``image_not_found`` or ``storage_unavailable``."""
        path = self.path(image_id)
        if not path.is_file() and not self._mirror.fetch(path, lambda data: _id_of(data) == image_id):
            raise Problem("image_not_found", "the image's file is gone; upload it again")
        return path

    def read(self, image_id: str) -> bytes:
        """The PNG bytes; raises as `file`."""
        try:
            return self.path(image_id).read_bytes()
        except FileNotFoundError:
            return self.file(image_id).read_bytes()

    def use(self, image_id: str) -> bytes:
        """The PNG bytes, after marking the image as used: no sweep takes it soon; raises ``image_not_found``."""
        self.get(image_id)
        return self.read(image_id)

    def sweep(self, *, at: datetime | None = None) -> int:
        """Delete images that no trace shows and that were unused for 24 h; returns their number."""
        before = stamp(at - KEEP - TOUCH_EVERY) if at is not None else database.clock.before(KEEP + TOUCH_EVERY)
        i, used = tables.images, tables.trace_images
        query = sa.select(i.c.id).where(
            i.c.last_used_at < before, ~sa.exists().where(used.c.image_id == i.c.id).correlate(i)
        )
        with self._db.read() as connection:
            candidates = [row.id for row in connection.execute(query)]
        swept = 0
        for image_id in candidates:
            with self._lock, self._db.write() as connection:
                if image_id in self._arriving:
                    continue
                gone = connection.execute(
                    sa.delete(i).where(
                        i.c.id == image_id,
                        i.c.last_used_at < before,
                        ~sa.exists().where(used.c.image_id == i.c.id).correlate(i),
                    )
                ).rowcount
                if gone:
                    self._mirror.drop(connection, self.path(image_id), folder=False)
                    self.path(image_id).unlink(missing_ok=True)
                    swept += 1
        return swept + self._sweep_files(before)

    def _sweep_files(self, before: str) -> int:
        """Delete files that are older and whose row another server on the database has deleted."""
        i = tables.images
        old = [path for path in self._folder.glob("??/*.png") if _written_at(path) < before]
        with self._db.read() as connection:
            known = set(connection.execute(sa.select(i.c.id)).scalars()) if old else set()
        swept = 0
        for path in old:
            if path.stem not in known:
                with self._lock, self._db.write() as connection:  # again: storing the image waits for both
                    row = connection.execute(sa.select(i.c.id).where(i.c.id == path.stem)).first()
                    if row is None and path.stem not in self._arriving:
                        path.unlink(missing_ok=True)
                        swept += 1
        return swept


def _written_at(path: Path) -> str:
    """When a file was written, now if it is gone."""
    try:
        return stamp(datetime.fromtimestamp(path.stat().st_mtime, UTC))
    except FileNotFoundError:
        return stamp(datetime.now(UTC))


def _id_of(png: bytes) -> str:
    return hashlib.sha256(png).hexdigest()


class PartialStore:
    """Previews of unfinished images, deleted with their trace."""

    def __init__(self, folder: Path, mirror: Mirror | None = None) -> None:
        self._folder = folder
        self._mirror = mirror or Mirror()

    def put(self, trace_id: str, name: str, png: bytes) -> str:
        """Write a preview; returns its URL path. `enter` belongs into the commit of the event that shows it."""
        path = self.path(trace_id, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(png)
        temporary.rename(path)
        return f"/v1/traces/{trace_id}/partials/{name}"

    def enter(self, connection: Connection, trace_id: str, name: str) -> None:
        """Keep a written preview, in the caller's transaction."""
        self._mirror.put(connection, self.path(trace_id, name))

    def file(self, trace_id: str, name: str) -> Path:
        """The file of a preview, fetched if the home lacks it; raises ``image_not_found``, ``storage_unavailable``."""
        path = self.path(trace_id, name)
        if not path.is_file() and not self._mirror.fetch(path, _is_whole):
            raise Problem("image_not_found", "this partial image no longer exists")
        return path

    def path(self, trace_id: str, name: str) -> Path:
        """Where the file of a preview belongs; raises ``image_not_found`` for malformed names."""
        if not re.fullmatch(r"\w{1,64}", trace_id) or not re.fullmatch(r"\d{1,4}-\d{1,4}", name):
            raise Problem("image_not_found", "no partial image has this name")
        return self._folder / trace_id / f"{name}.png"

    def drop(self, connection: Connection, trace_id: str) -> None:
        """Have all previews of a trace deleted elsewhere, in the transaction that deletes the trace."""
        self._mirror.drop(connection, self._folder / trace_id, folder=True)

    def delete(self, trace_id: str) -> None:
        """Delete all previews of a trace from the home."""
        shutil.rmtree(self._folder / trace_id, ignore_errors=True)

    def sweep(self, known: Iterable[str]) -> None:
        """Delete the folders of unknown traces, left by a crash between row and folder."""
        keep = set(known)
        if self._folder.is_dir():
            for folder in self._folder.iterdir():
                if folder.name not in keep:
                    shutil.rmtree(folder, ignore_errors=True)


def _is_whole(png: bytes) -> bool:
    return png.endswith(PNG_END)
