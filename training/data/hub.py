"""Data sets of the Hugging Face hub, by address: ``hf://datasets/OWNER/NAME[@REVISION][/PATH]``.

PATH is a file, a folder or a pattern with ``*``; without one, every file of a known kind belongs to the data. Files are
fetched one by one, when the reader gets to them, and stay in the hub's cache: a job with ``num_samples: 1000`` fetches
the first shard of a large data set, not all of it. The addresses are those of ``huggingface_hub.HfFileSystem``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

from training.data.row_images import DataError
from training.home_paths import HUB

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SUFFIXES = (".jsonl", ".parquet", ".arrow")  # of files with rows
_ADDRESS = re.compile(
    r"hf://datasets/(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|[^/]+))?(?:/(?P<path>.*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS = 30.0  # for an answer of the hub

T = TypeVar("T")


@dataclass(frozen=True)
class HubAddress:
    """Where a data set is on the hub.

    Attributes:
        repo: ``OWNER/NAME``.
        revision: a branch, tag or commit; None is the default branch.
        path: a file, folder or pattern in it; empty is everything.
    """

    repo: str
    revision: str | None
    path: str

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Read an address.

        Raises:
            DataError: it is none of a data set.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise DataError(f"{text} is no address of a data set: hf://datasets/OWNER/NAME[@REVISION][/PATH]")
        revision = match["revision"]
        return cls(match["repo"], None if revision is None else unquote(revision), (match["path"] or "").strip("/"))

    def __str__(self) -> str:
        revision = "" if self.revision is None else "@" + quote(self.revision, safe="")
        return f"hf://datasets/{self.repo}{revision}" + (f"/{self.path}" if self.path else "")

    def holds(self, file: str) -> bool:
        """Whether a file of the repository belongs to the data."""
        if "*" in self.path:
            return fnmatchcase(file, self.path)
        return not self.path or file == self.path or file.startswith(f"{self.path}/")


def is_hub(path: str | Path) -> bool:
    """Whether a path of the data is an address on the hub."""
    return str(path).startswith(HUB)


def pinned(text: str) -> str:
    """The address with its commit as revision: the same files, whatever is pushed to the hub later.

    Raises:
        DataError: the address is malformed, or the hub does not know it or does not answer.
    """
    address = HubAddress.parse(text)
    if address.revision is not None and _COMMIT.fullmatch(address.revision):
        return text
    info = _asked(text, lambda api: api.dataset_info(address.repo, revision=address.revision, timeout=_SECONDS))
    return str(replace(address, revision=info.sha))


def pins_of(spec: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, str]:
    """The data of a job's spec on the hub: each address, and what `pinned` makes of it, unless it is `known`.

    Raises:
        DataError: as `pinned`.
    """
    wanted = sorted({str(data["path"]) for data in _hub_parts(spec)})
    return {address: known.get(address) or pinned(address) for address in wanted}


def with_pins(spec: Mapping[str, Any], pins: Mapping[str, str]) -> dict[str, Any]:
    """A copy of the spec with the pinned addresses."""
    copied: dict[str, Any] = json.loads(json.dumps(spec))
    for data in _hub_parts(copied):
        data["path"] = pins.get(data["path"], data["path"])
    return copied


def _hub_parts(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of the data that are on the hub; a pipeline has one for each stage."""
    data = spec.get("data") or {}
    for part in [data] if "source" in data else data.values():
        if part and is_hub(part.get("path") or ""):
            yield part


def hub_files(text: str) -> Iterator[Path]:
    """Fetch the files of the data by name, each when it is asked for.

    Raises:
        DataError: as `pinned`, or no file of a known kind belongs to the address.
    """
    address = HubAddress.parse(pinned(text))
    listed = _asked(text, lambda api: api.list_repo_files(address.repo, revision=address.revision, repo_type="dataset"))
    names = sorted(name for name in listed if name.endswith(SUFFIXES) and address.holds(name))
    if not names:
        raise DataError(f"{text} has no file that ends in {', '.join(SUFFIXES)}")
    for name in names:
        yield Path(_asked(f"{name} of {text}", partial(_fetched, address, name)))


def _fetched(address: HubAddress, name: str, api: HfApi) -> str:
    return api.hf_hub_download(
        address.repo, name, revision=address.revision, repo_type="dataset", etag_timeout=_SECONDS
    )


def _asked(what: str, ask: Callable[[HfApi], T]) -> T:
    from huggingface_hub import HfApi

    try:
        return ask(HfApi(library_name="omni-r1-studio"))
    except Exception as error:  # the hub's client raises a dozen kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{what} cannot be read from the hub: {reason[0]}") from error
