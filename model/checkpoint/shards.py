"""A checkpoint folder's files, without torch: tensor entries, hashes and name resolution.

Only safetensors are read: their header is plain JSON. Knows nothing of the tensors' purpose.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import ConfigError, read_json
from model.foreign import foreign_content

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHIPPED = Path(__file__).parents[1] / "nano"
_MAX_HEADER = 100_000_000
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Left in front of every name by a save of a wrapped model: DistributedDataParallel, torch.compile, PEFT.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+|(?<=\.)_orig_mod\.")
_LORA = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\b|\.base_layer\.")
FLOATS = ("F64", "F32", "F16", "BF16")
ADAPTER = "adapter_config.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.md", "LICENSE*"]


class CheckpointError(Exception):
    """A folder is not a usable checkpoint.

    ``code`` is one of: ``not_found, missing_file, broken_file, pickle_only, unsupported, wrong_vocabulary,
    missing_tensor, unexpected_tensor, unexpected_shape, not_finite, hash_mismatch, exists, insufficient_memory,
    download_failed, hub_silent``. ``detail`` names the file or tensor and the remedy.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail

    def __reduce__(self) -> tuple[type[CheckpointError], tuple[str, str]]:
        return type(self), (self.code, self.detail)


@dataclass(frozen=True)
class TensorEntry:
    """One stored tensor: the file that holds it, its shape and its safetensors dtype (``BF16``, ``F32`` ...)."""

    file: str
    shape: tuple[int, ...]
    dtype: str


def require_plain_files(folder: Path) -> None:
    """Reject folders with files that can block a reader forever, such as named pipes.

    Raises:
        CheckpointError: ``broken_file``.
    """
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # dangling link; its reader reports the error
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise CheckpointError("broken_file", f"{path} is not a regular file")


def unwrapped(name: str) -> str:
    """The name of a tensor without the marks of wrappers (``module.``, ``_orig_mod.``, ``base_model.model.``)."""
    return _WRAPPERS.sub("", name)


def check_storage(entries: Mapping[str, TensorEntry]) -> None:
    """Reject tensors of the right model in a form that cannot be loaded: wrapped names, adapters, quantised numbers.

    Raises:
        CheckpointError: ``unexpected_tensor`` or ``unsupported``, naming the first such tensor.
    """
    for name, entry in entries.items():
        if _LORA.search(name):
            raise CheckpointError(
                "unsupported", f"{name} belongs to a LoRA adapter: merge it into its base (`omni-r1 convert --base`)"
            )
        if (bare := unwrapped(name)) != name:
            raise CheckpointError(
                "unexpected_tensor",
                f"{name} was saved from a wrapped model and should be {bare}: `omni-r1 convert FOLDER OUT` renames it",
            )
        if name.endswith((".weight", ".bias")) and entry.dtype not in FLOATS:
            raise CheckpointError(
                "unsupported",
                f"{name} is stored as {entry.dtype}: quantised weights are not loaded, only bf16, fp16 and fp32",
            )


def require_data(folder: Path) -> None:
    """Reject folders whose JSON or weights are really something else (:mod:`model.foreign`).

    Raises:
        CheckpointError: ``broken_file``, naming the file and the remedy.
    """
    for path in sorted((*folder.glob("*.json"), *folder.glob("*.safetensors"))):
        if path.is_file() and (what := _foreign(path)):
            raise CheckpointError("broken_file", f"{path} {what}")


def read_entries(folder: Path) -> dict[str, TensorEntry]:
    """Read every tensor entry of a checkpoint folder, for any sharding.

    Raises:
        CheckpointError: ``missing_file``, ``pickle_only``, ``broken_file`` or ``missing_tensor`` (in the index only).
    """
    if (folder / INDEX).is_file():
        weight_map = _read_index(folder)
        found = _entries(folder, sorted(set(weight_map.values())))
        for name, file in weight_map.items():
            if name not in found or found[name].file != file:
                raise CheckpointError("missing_tensor", f"{name}: {INDEX} maps it to {file}, which does not contain it")
        return found
    if (folder / SINGLE).is_file():
        return _entries(folder, [SINGLE])
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            "pickle_only",
            f"{folder} contains {pickles[0]} but no safetensors; pickle files can run code and are not loaded. "
            "Convert it first (docs/checkpoints.md).",
        )
    raise CheckpointError("missing_file", f"{folder} contains neither {INDEX} nor {SINGLE}")


def header_entries(path: Path) -> dict[str, TensorEntry]:
    """Read the tensor entries in the header of one safetensors file.

    Raises:
        CheckpointError: ``missing_file``, or ``broken_file`` for a truncated or foreign file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _MAX_HEADER):
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        entries = {
            str(name): TensorEntry(path.name, tuple(int(n) for n in value["shape"]), str(value["dtype"]))
            for name, value in header.items()
            if name != "__metadata__"
        }
        end = max((int(v["data_offsets"][1]) for n, v in header.items() if n != "__metadata__"), default=0)
        if 8 + length + end != size:
            raise ValueError(f"it should have {8 + length + end} bytes and has {size}")
    except FileNotFoundError as error:
        raise CheckpointError("missing_file", f"{path} does not exist") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        if what := _foreign(path):
            raise CheckpointError("broken_file", f"{path} {what}") from error
        raise CheckpointError("broken_file", f"{path} is not a complete safetensors file: {error}") from error
    return entries


def _foreign(path: Path) -> str | None:
    try:
        return foreign_content(path)
    except OSError:
        return None


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve(
    name: str,
    *,
    roots: Iterable[Path] = (),
    download: Callable[..., str] | None = None,
) -> Path:
    """Find the folder of a checkpoint given as a path, a name, or a hub id.

    Search order: a folder at that path; ``name`` in one of ``roots``; ``name`` among the shipped ones; and, for
    ``owner/name``, the Hugging Face hub (files go into the hub's own cache; pickles are not downloaded).

    Raises:
        CheckpointError: ``not_found``, ``download_failed`` or ``hub_silent``.
    """
    return find_local(name, roots=roots) or fetch(name, download=download)


def find_local(name: str, *, roots: Iterable[Path] = ()) -> Path | None:
    """Like :func:`resolve` but without the hub: None for an id that is only there.

    Raises:
        CheckpointError: ``missing_file`` or ``not_found``.
    """
    path = Path(os.path.expanduser(name))  # Path.expanduser raises without a home directory
    if _is_checkpoint(path):
        return path.resolve()
    if _NAME.fullmatch(name):
        for root in (*roots, SHIPPED):
            if _is_checkpoint(root / name):
                return (root / name).resolve()
    if os.path.isdir(path):
        raise CheckpointError("missing_file", f"{path} has no config.json, so it is not a checkpoint")
    if HUB_ID.fullmatch(name) and not os.path.exists(path):
        return None
    raise CheckpointError("not_found", f"{name!r} is not a folder, a known checkpoint or a hub id (owner/name)")


def _is_checkpoint(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in ("config.json", ADAPTER))  # False for impossible names


def fetch(repo_id: str, *, download: Callable[..., str] | None = None, **options: Any) -> Path:
    """Download a hub id's files into the hub's own cache; ``options`` are passed to ``snapshot_download``.

    Raises:
        CheckpointError: ``download_failed``, or ``hub_silent`` when the hub does not answer.
    """
    if download is None:
        from huggingface_hub import snapshot_download

        download = snapshot_download
    try:
        return Path(download(repo_id, allow_patterns=_HUB_PATTERNS, **options))
    except Exception as error:  # the hub client raises a dozen kinds, all with the same meaning here
        code = "hub_silent" if _timed_out(error) else "download_failed"
        raise CheckpointError(code, f"{repo_id} could not be fetched from the hub: {error}") from error


def _timed_out(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _read_index(folder: Path) -> dict[str, str]:
    try:
        weight_map = read_json(folder / INDEX)["weight_map"]
        result = {str(name): str(file) for name, file in weight_map.items()}
    except (ConfigError, KeyError, AttributeError) as error:
        raise CheckpointError("broken_file", f"{folder / INDEX} is not an index of shards: {error}") from error
    for file in result.values():
        if Path(file).name != file:
            raise CheckpointError("broken_file", f"{folder / INDEX} points outside its folder: {file}")
    return result


def _entries(folder: Path, files: list[str]) -> dict[str, TensorEntry]:
    found: dict[str, TensorEntry] = {}
    for file in files:
        found |= header_entries(folder / file)
    return found
