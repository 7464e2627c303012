"""Image codes that earlier jobs have computed, in the home: ``cache/codes.db``.

A row belongs to an image's pixels, as the model sees them, and to the tokenizer that encoded them. Any number of jobs
read and write at once. Losing the file costs time only: a damaged one is deleted, and when it cannot be used a job
encodes as without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from model.nets.vq import VQModel

MOST_BYTES = 1_000_000_000
ASKED_AT_ONCE = 500  # parameters of a query
PATIENCE_S = 10.0  # for another job's write
PLACE = Path("cache", "codes.db")

T = TypeVar("T")

log = logging.getLogger("omni_r1.data")


class CodeCache:
    """The codes of one tokenizer's images; usable by one thread."""

    def __init__(self, file: Path, vq: VQModel, *, most_bytes: int = MOST_BYTES) -> None:
        """``file`` is created when it is first used; when it holds ``most_bytes`` its oldest quarter goes."""
        self._file, self._most_bytes = file, most_bytes
        self._tokenizer = _identity(vq)
        self._count, self._limit = vq.config.codes_per_image, vq.config.num_embeddings
        self._usable = True

    @classmethod
    def of_job(cls, folder: Path, vq: VQModel) -> CodeCache | None:
        """That of the home with this job's folder; None for a folder that is in no home."""
        return cls(folder.parents[1] / PLACE, vq) if folder.parent.name == "jobs" else None

    def keys(self, images: np.ndarray) -> list[bytes]:
        """A key for each of the images [B, R, R, 3] uint8."""
        return [hashlib.sha256(self._tokenizer + image.tobytes()).digest() for image in images]

    def find(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """The known codes [N] int32 by key."""
        return self._attempt(lambda db: self._found(db, keys)) or {}

    def _found(self, db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        found = {}
        for start in range(0, len(keys), ASKED_AT_ONCE):
            asked = keys[start : start + ASKED_AT_ONCE]
            marks = ",".join("?" * len(asked))
            for key, data in db.execute(f"SELECT key, codes FROM codes WHERE key IN ({marks})", asked):
                if not isinstance(data, bytes) or len(data) != 4 * self._count:
                    continue
                codes = np.frombuffer(data, "<i4")
                if codes.min() >= 0 and codes.max() < self._limit:
                    found[bytes(key)] = codes.astype(np.int32)
        return found

    def keep(self, keys: Sequence[bytes], codes: np.ndarray) -> None:
        """Keep the codes [B, N] of images with these keys."""
        rows = [(key, row.astype("<i4").tobytes()) for key, row in zip(keys, codes, strict=True)]
        self._attempt(lambda db: self._keep(db, rows))

    def _keep(self, db: sqlite3.Connection, rows: Sequence[tuple[bytes, bytes]]) -> None:
        db.executemany("INSERT OR REPLACE INTO codes (key, codes) VALUES (?, ?)", rows)
        pages, free, size = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        if (pages - free) * size > self._most_bytes:
            oldest = "SELECT MIN(rowid) + (MAX(rowid) - MIN(rowid)) / 4 FROM codes"
            db.execute(f"DELETE FROM codes WHERE rowid <= ({oldest})")

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """What ``work`` returns; None without a usable file."""
        if not self._usable:
            return None
        try:
            self._file.parent.mkdir(exist_ok=True)
            with contextlib.closing(sqlite3.connect(self._file, timeout=PATIENCE_S)) as db, db:
                db.execute("CREATE TABLE IF NOT EXISTS codes (key BLOB PRIMARY KEY, codes BLOB NOT NULL)")
                return work(db)
        except (OSError, sqlite3.OperationalError) as error:  # locked for long, a full disk, no right to write
            self._usable = False
            log.warning("image codes are not kept for other jobs: %s", error)
        except sqlite3.DatabaseError as error:
            log.warning("%s is damaged and begins anew: %s", self._file, error)
            with contextlib.suppress(OSError):
                for file in (self._file.with_name(f"{self._file.name}-journal"), self._file):
                    file.unlink(missing_ok=True)
        return None


def _identity(vq: VQModel) -> bytes:
    """Of everything that decides an image's codes: the encoder's tensors, and the kind of device that runs it."""
    digest = hashlib.sha256(vq.codebook.device.type.encode())
    for name, tensor in sorted(vq.state_dict().items()):
        if not name.startswith(("decoder.", "post_quant_conv.")):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.digest()
