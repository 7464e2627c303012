"""Uploaded data sets: stored by content below `OMNI_R1_HOME/uploads`, and checked for what each method needs. Blocking.

A zip is unpacked into a folder. The check (:mod:`training.data.check`) runs in a child process, so that no file can
crash or block the server. Its report, the complete list of rejections and the preview's images are a cache in the
home's temporary folder: a missing report is made again.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.contract.problems import Problem, field_problem
from app.storage.home import move_durably
from app.storage.uploads import Upload
from training.data.archives import is_zip, unpack
from training.data.check import FULL_DISK, REJECTIONS, REPORT, report_for
from training.data.rows import DataError

FOLDER = "uploads"
CHECKS = Path("tmp") / "checks"
MAX_DATASET_BYTES = 20_000_000  # of a jsonl
MAX_BINARY_BYTES = 200_000_000  # of a parquet file or a zip
DEADLINE_S = 100.0  # of the child; the check itself stops earlier
SUFFIXES = {"jsonl": ".jsonl", "parquet": ".parquet", "zip": ""}
_ID = re.compile(r"[0-9a-f]{32}")
_IMAGE = re.compile(r"[0-9a-z-]{1,40}\.png")
_BROKEN = ("broken_line", "broken_file")


class DatasetStore:
    """The uploaded data sets of one home."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def take(self, upload: Upload, method: str | None = None) -> dict[str, Any]:
        """Check and store a jsonl, a parquet file or a zip of such files with their images; returns the report.

        Raises:
            Problem: ``body_too_large``, ``invalid`` for a file without a readable row, or ``unusable_dataset`` if
                `method` can use none of them.
        """
        with upload.path.open("rb") as file:
            kind = _kind_of(file.read(4))
        most = MAX_DATASET_BYTES if kind == "jsonl" else MAX_BINARY_BYTES
        if upload.size > most:
            what = f"{kind} uploads are limited to {most:,} bytes; put larger files in OMNI_R1_HOME"
            raise Problem("body_too_large", what)
        name = upload.digest.hex()[:32]
        place = self._place(name, kind)
        if place.exists():
            found = self._checked(name, place)
            _require_rows(found, method)
        else:
            self._store_new(upload, name, kind, method)
            found = self._checked(name, place)
        return self._report(name, kind, place, found, method)

    def _store_new(self, upload: Upload, name: str, kind: str, method: str | None) -> None:
        """Check a file under its final name, then move it and its report into place."""
        place = self._place(name, kind)
        with tempfile.TemporaryDirectory(dir=upload.path.parent) as temporary:
            waiting = Path(temporary) / place.name
            if kind == "zip":
                waiting.mkdir()
                try:
                    unpack(upload.path, waiting)
                except DataError as error:
                    raise field_problem("invalid", "body", str(error)) from None
            else:
                upload.path.rename(waiting)
            checked = Path(temporary) / "check"
            checked.mkdir()
            found = _check(waiting, checked)
            _require_rows(found, method)
            if kind == "zip":
                place.parent.mkdir(parents=True, exist_ok=True)
                with suppress(OSError):  # the same zip was uploaded in parallel
                    waiting.rename(place)
            else:
                move_durably(waiting, place)
            self._keep(name, checked)

    def report(self, dataset_id: str, method: str | None = None) -> dict[str, Any]:
        """The report of a stored data set. Raises `Problem` ``dataset_not_found``."""
        place, kind = self._find(dataset_id)
        return self._report(dataset_id, kind, place, self._checked(dataset_id, place), method)

    def rejections(self, dataset_id: str) -> Path:
        """The file with every rejection, one JSON object per line. Raises `Problem` ``dataset_not_found``."""
        place, _ = self._find(dataset_id)
        self._checked(dataset_id, place)
        return self._cache(dataset_id) / REJECTIONS

    def image(self, dataset_id: str, name: str) -> Path:
        """An image of the preview. Raises `Problem` ``dataset_not_found`` or ``not_found``."""
        place, _ = self._find(dataset_id)
        self._checked(dataset_id, place)
        path = self._cache(dataset_id) / name
        if not _IMAGE.fullmatch(name) or not path.is_file():
            raise Problem("not_found", "the preview has no such image; the report links its images")
        return path

    # ---- places

    def _place(self, name: str, kind: str) -> Path:
        return self._home / FOLDER / f"{name}{SUFFIXES[kind]}"

    def _find(self, dataset_id: str) -> tuple[Path, str]:
        if _ID.fullmatch(dataset_id):
            for kind in SUFFIXES:
                if (place := self._place(dataset_id, kind)).exists():
                    return place, kind
        raise Problem("dataset_not_found", "no uploaded data set has this id")

    def _cache(self, dataset_id: str) -> Path:
        return self._home / CHECKS / dataset_id

    # ---- checks

    def _checked(self, dataset_id: str, place: Path) -> Mapping[str, Any]:
        """The findings, from the cache or a new check."""
        try:
            return _findings(self._cache(dataset_id))
        except (OSError, ValueError):
            (self._home / CHECKS).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._home / CHECKS) as temporary:
            checked = Path(temporary) / "check"
            checked.mkdir()
            found = _check(place, checked)
            self._keep(dataset_id, checked)
        return found

    def _keep(self, dataset_id: str, checked: Path) -> None:
        (self._home / CHECKS).mkdir(parents=True, exist_ok=True)
        try:
            checked.rename(self._cache(dataset_id))
        except OSError:  # another request was faster, or left half a check
            with suppress(OSError, ValueError):
                _findings(self._cache(dataset_id))
                return
            shutil.rmtree(self._cache(dataset_id), ignore_errors=True)
            checked.rename(self._cache(dataset_id))

    def _report(
        self, dataset_id: str, kind: str, place: Path, found: Mapping[str, Any], method: str | None
    ) -> dict[str, Any]:
        report = report_for(found, method)
        address = f"/v1/datasets/{dataset_id}"
        report["rejected"]["url"] = f"{address}/rejections"
        report["preview"] = [_with_addresses(row, address) for row in report["preview"]]
        files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
        about = {"id": dataset_id, "path": str(Path(FOLDER) / place.name), "format": kind}
        return {**about, "bytes": sum(path.stat().st_size for path in files), **report}


def _kind_of(head: bytes) -> str:
    return "zip" if is_zip(head) else "parquet" if head == b"PAR1" else "jsonl"


def _check(path: Path, out: Path) -> Mapping[str, Any]:
    """The findings of a child process, written into `out`."""
    command = [sys.executable, "-m", "training.data.check", str(path), str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        raise field_problem("invalid", "body", f"the check took more than {DEADLINE_S:g} s") from None
    if done.returncode == 2:
        raise field_problem("invalid", "body", done.stderr.strip().splitlines()[-1].replace(str(path), "the zip"))
    if done.returncode == FULL_DISK:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise field_problem("invalid", "body", f"the file cannot be checked: {last[:300]}")
    return _findings(out)


def _findings(folder: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((folder / REPORT).read_text("utf-8"))
    return found


def _require_rows(found: Mapping[str, Any], method: str | None) -> None:
    """Reject a file that is empty, broken from end to end, or of no use for the method."""
    if not found["rows"]:
        raise field_problem("invalid", "body", "the file is empty")
    broken = next((one for one in found["first"]["any"] if one["code"] in _BROKEN), None)
    if broken is not None and not any(found["usable_for"].values()):
        raise field_problem("invalid", "body", _sentence(broken))
    if method is not None and not found["usable_for"][method]:
        errors = [{"path": "body", "message": _sentence(one)} for one in found["first"][method]]
        more = f": {errors[0]['message']}" if errors else ""
        raise Problem("unusable_dataset", f"{method} can use none of {found['rows']:,} rows{more}", errors=errors)


def _sentence(rejection: Mapping[str, Any]) -> str:
    """Names the line, and the file of a zip: other files have been renamed."""
    file = rejection["where"].rpartition(":")[0]
    of_zip = "" if _ID.fullmatch(Path(file).stem) else f"{file}, "
    return f"{of_zip}line {rejection['row']}: {rejection['detail']} ({rejection['code']})"


def _with_addresses(row: Mapping[str, Any], address: str) -> dict[str, Any]:
    """A row of the preview with URLs in place of file names."""

    def image(one: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if one is None:
            return None
        url = f"{address}/images/{one['file']}" if "file" in one else None
        return {"url": url, "token_ids": one.get("token_ids")}

    steps = [{**step, "image": image(step["image"])} for step in row["steps"]]
    return {**row, "images": [image(one) for one in row["images"]], "steps": steps}
