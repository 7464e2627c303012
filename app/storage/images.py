"""Images on disk, content-addressed: PNGs stored once, partial images kept with their trace.

Files are written under another name, synced and renamed. Blocking throughout: call from threads. Knows no HTTP, and
nothing of other formats: :mod:`app.storage.image_intake` turns uploads into the PNGs that are stored here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from PIL import Image
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from app.common.clock import stamp
from app.contract.problems import Problem, field_problem
from app.storage import database as tables
from app.storage.database import Database, now

MAX_UPLOAD_BYTES = 20_000_000
KEEP = timedelta(hours=24)
# `last_used_at` is written at most once an hour a picture, so the sweep gives that hour on top.
TOUCH_EVERY = timedelta(hours=1)
_ID = re.compile(r"[0-9a-f]{64}")
_DATA_URL = re.compile(r"data:image/[\w.+-]+(;[\w=.+-]+)*;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class StoredImage:
    """A picture in the store."""

    image_id: str
    width: int
    height: int

    def as_json(self) -> dict[str, Any]:
        """As the contract shows it."""
        return {"image_id": self.image_id, "url": image_url(self.image_id), "width": self.width, "height": self.height}


def image_url(image_id: str) -> str:
    """Where the picture is served."""
    return f"/v1/images/{image_id}"


def encode_png(picture: Image.Image) -> bytes:
    """The picture as PNG bytes, always the same for the same pixels, without metadata."""
    out = io.BytesIO()
    clean = Image.frombytes("RGB", picture.size, picture.convert("RGB").tobytes())
    clean.save(out, "PNG", compress_level=6)
    return out.getvalue()


def from_data_url(url: str, path: str) -> bytes:
    """The bytes in a ``data:image/…;base64,`` URL; `path` names the field in the refusal."""
    match = _DATA_URL.match(url)
    if match is None:
        raise field_problem(
            "unsupported_url", path, "only data:image/…;base64, URLs are read; upload the picture to /v1/images instead"
        )
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise field_problem("image_broken", path, "the base64 in the data URL is broken") from None


class ImageStore:
    """Content-addressed PNGs under `folder`, their rows in the database."""

    def __init__(self, folder: Path, db: Database) -> None:
        self._folder = folder
        self._db = db
        # The sweep takes row and file together; a picture that is stored again meanwhile must wait for it.
        self._lock = threading.Lock()
        self._arriving: Counter[str] = Counter()
        self._counting = threading.Lock()  # held for no longer than a count takes

    def path(self, image_id: str) -> Path:
        """Where the file of `image_id` lies; raises ``image_not_found`` for what is no id at all."""
        if not _ID.fullmatch(image_id):
            raise Problem("image_not_found", "no picture has this id; it may have been swept away: upload it again")
        return self._folder / image_id[:2] / f"{image_id}.png"

    def put(self, png: bytes, width: int, height: int) -> StoredImage:
        """Store an RGB PNG (durably) and return it; storing it again only marks it as used."""
        stored = StoredImage(hashlib.sha256(png).hexdigest(), width, height)
        return self._put(stored, len(png), lambda path: write_durably(path, png))

    def put_file(self, file: Path, width: int, height: int) -> StoredImage:
        """Store the RGB PNG in a file of the home, which is taken away."""
        with file.open("rb") as opened:
            image_id = hashlib.file_digest(opened, "sha256").hexdigest()
        stored = StoredImage(image_id, width, height)
        return self._put(stored, file.stat().st_size, lambda path: move_durably(file, path))

    def _put(self, stored: StoredImage, num_bytes: int, write: Callable[[Path], None]) -> StoredImage:
        path = self.path(stored.image_id)
        with self._lock:
            if not path.exists():
                write(path)
            with self._db.write() as connection:
                self.enter(connection, stored, num_bytes)
        return stored

    def bring(self, png: bytes) -> StoredImage:
        """Write the file of a PNG from the engine, as it is. Its row is `enter`ed with the event that shows it: one
        commit for both. Until `settle` no sweep takes the file."""
        with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
            width, height = picture.size
        image_id = hashlib.sha256(png).hexdigest()
        path = self.path(image_id)
        with self._lock, self._counting:
            self._arriving[image_id] += 1
        stored = StoredImage(image_id, width, height)
        try:
            if not path.exists():
                write_durably(path, png)
        except BaseException:
            self.settle(stored)
            raise
        return stored

    def enter(self, connection: Connection, image: StoredImage, num_bytes: int) -> None:
        """The row of a picture whose file is there, in the caller's transaction."""
        _enter(connection, image.image_id, image.width, image.height, num_bytes)

    def settle(self, image: StoredImage) -> None:
        """What was brought has its row, or will never have one. Does not block."""
        with self._counting:
            self._arriving[image.image_id] -= 1
            if not self._arriving[image.image_id]:
                del self._arriving[image.image_id]

    def put_picture(self, picture: Image.Image) -> StoredImage:
        """Store a picture the server made itself."""
        return self.put(encode_png(picture), picture.width, picture.height)

    def get(self, image_id: str) -> StoredImage:
        """The picture's facts, marked as asked for; raises ``image_not_found``."""
        self.path(image_id)
        i = tables.images
        with self._db.read() as connection:
            row = connection.execute(sa.select(i).where(i.c.id == image_id)).one_or_none()
        if row is None:
            raise Problem("image_not_found", "no picture has this id; it may have been swept away: upload it again")
        if row.last_used_at < stamp(datetime.now(UTC) - TOUCH_EVERY):
            with self._db.write() as connection:
                connection.execute(sa.update(i).where(i.c.id == image_id).values(last_used_at=now()))
        return StoredImage(row.id, row.width, row.height)

    def read(self, image_id: str) -> bytes:
        """The PNG's bytes; raises ``image_not_found``."""
        try:
            return self.path(image_id).read_bytes()
        except FileNotFoundError:
            raise Problem("image_not_found", "the picture's file is gone; upload it again") from None

    def sweep(self, *, at: datetime | None = None) -> int:
        """Remove pictures that no trace shows and nobody stored or asked for in 24 h; how many went."""
        before = stamp(at - KEEP - TOUCH_EVERY) if at is not None else tables.clock.before(KEEP + TOUCH_EVERY)
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
                    self.path(image_id).unlink(missing_ok=True)
                    swept += 1
        return swept


def _enter(connection: Connection, image_id: str, width: int, height: int, num_bytes: int) -> None:
    """A picture's row; one that is there already is marked as used."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    moment = now()
    row = {"id": image_id, "width": width, "height": height, "bytes": num_bytes}
    values = insert(tables.images).values(**row, created_at=moment, last_used_at=moment)
    connection.execute(values.on_conflict_do_update(index_elements=["id"], set_={"last_used_at": moment}))


class PartialStore:
    """Pictures of unfinished drawings: they belong to their trace and go with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, trace_id: str, name: str, png: bytes) -> str:
        """Keep one; returns the path it is served under."""
        path = self.path(trace_id, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        beside.write_bytes(png)
        beside.rename(path)
        return f"/v1/traces/{trace_id}/partials/{name}"

    def path(self, trace_id: str, name: str) -> Path:
        """Where a partial picture lies; raises ``image_not_found`` for odd names."""
        if not re.fullmatch(r"\w{1,64}", trace_id) or not re.fullmatch(r"\d{1,4}-\d{1,4}", name):
            raise Problem("image_not_found", "no partial picture has this name")
        return self._folder / trace_id / f"{name}.png"

    def delete(self, trace_id: str) -> None:
        """Remove every partial picture of a trace."""
        shutil.rmtree(self._folder / trace_id, ignore_errors=True)

    def sweep(self, known: Iterable[str]) -> None:
        """Remove the folders of traces that are not `known` any more (a crash between row and folder)."""
        keep = set(known)
        if self._folder.is_dir():
            for folder in self._folder.iterdir():
                if folder.name not in keep:
                    shutil.rmtree(folder, ignore_errors=True)


def write_durably(path: Path, data: bytes) -> None:
    """Write under another name, sync, rename, sync the folder: the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(data)
        move_durably(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move_durably(file: Path, path: Path) -> None:
    """Sync, rename, sync the folder; both lie on one file system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    file.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
