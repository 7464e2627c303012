"""``manifest.json``: what a checkpoint is, its origin and the hashes of its files.

Every checkpoint made here has one. Folders without one (released HF checkpoints) get a derived manifest, so that no
other code handles the difference.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.checkpoint.atomic import write_file
from model.checkpoint.parts import base_folder, is_adapter
from model.checkpoint.shards import CheckpointError, file_hash, read_entries
from model.config import ConfigError, read_json

FILE = "manifest.json"
FORMAT = 1
CHAMELEON_LICENCE = "Chameleon Research License (non-commercial research only)"
_NOT_HASHED = {FILE, "README.md"}


@dataclass(frozen=True)
class Capabilities:
    """What the files support: reading images (VQ encoder) and answering with images (VQ decoder)."""

    images_in_answer: bool = True
    images_in_question: bool = True


@dataclass(frozen=True)
class ImageCount:
    """Minimum and maximum number of images per question."""

    min: int = 0
    max: int = 1


@dataclass(frozen=True)
class Perception:
    """Scale of the perception score R_Pe for this codebook (docs/method).

    Attributes:
        tau: the score's scale in s = 1 / (1 + E_2D / tau).
        energy_p95: E_2D that 95 % of the reference images exceed (95th percentile of R_Pe); the score of smoother
            images is capped. None: no cap.
        flat_share_max: largest share of one code among the reference images. None: only the fixed guard of .5.
    """

    tau: float = 3.0
    energy_p95: float | None = None
    flat_share_max: float | None = None


@dataclass(frozen=True)
class Manifest:
    """One checkpoint's manifest; ``extra`` keeps unknown keys."""

    name: str
    template: str = "plain"
    base: str | None = None
    licence: str = ""
    description: str = ""
    capabilities: Capabilities = field(default_factory=Capabilities)
    images: ImageCount = field(default_factory=ImageCount)
    perception: Perception | None = None
    card_notes: str = ""
    verifier: str = ""  # the question whose answer is the order between two images; "": untrained for that
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    lineage: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    derived: bool = field(default=False, compare=False)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Parse a ``manifest.json`` object.

        Raises:
            ValueError: a newer format, or fields of the wrong kind.
        """
        if data.get("format") != FORMAT:
            raise ValueError(f"{FILE} has format {data.get('format')!r}; this program reads format {FORMAT}")
        known = {f.name for f in fields(cls)} - {"extra", "derived"}
        values = {key: value for key, value in data.items() if key in known}
        try:
            values["capabilities"] = Capabilities(**(values.get("capabilities") or {}))
            values["images"] = ImageCount(**(values.get("images") or {}))
            perception = values.get("perception")
            values["perception"] = Perception(**perception) if perception else None
            extra = {key: value for key, value in data.items() if key not in known and key != "format"}
            return cls(**values, extra=extra)
        except TypeError as error:
            raise ValueError(f"{FILE}: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Convert to a ``manifest.json`` object."""
        perception = self.perception
        return {
            "format": FORMAT,
            "name": self.name,
            "template": self.template,
            "base": self.base,
            "licence": self.licence,
            "description": self.description,
            "capabilities": vars(self.capabilities),
            "images": vars(self.images),
            "perception": None if perception is None else vars(perception),
            "card_notes": self.card_notes,
            **({"verifier": self.verifier} if self.verifier else {}),
            "created_at": self.created_at,
            "lineage": self.lineage,
            "files": self.files,
            **self.extra,
        }

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """Read the manifest of a folder, or derive it from the files.

        Raises:
            CheckpointError: ``broken_file`` for an unreadable manifest, and errors of
            :func:`model.checkpoint.shards.read_entries`
                for a derived one.
        """
        folder = Path(folder)
        if not (folder / FILE).exists():
            return adapter_manifest(folder, base_folder(folder)) if is_adapter(folder) else _derive(folder)
        try:
            return cls.from_json(read_json(folder / FILE))
        except (ConfigError, ValueError) as error:
            raise CheckpointError("broken_file", f"{folder / FILE}: {error}") from error

    def write(self, folder: str | Path) -> Manifest:
        """Write ``manifest.json``, whole or not at all, with the hashes of the folder's files; return it."""
        folder = Path(folder)
        files = {
            path.name: {"sha256": file_hash(path), "bytes": path.stat().st_size}
            for path in sorted(folder.iterdir())
            if path.is_file() and path.name not in _NOT_HASHED and not path.name.startswith(".")
        }
        written = Manifest(**{**{f.name: getattr(self, f.name) for f in fields(self)}, "files": files})
        text = json.dumps(written.to_json(), indent=2, ensure_ascii=False) + "\n"
        write_file(folder / FILE, lambda temporary: temporary.write_text(text, "utf-8"))
        return written

    def verify_hashes(self, folder: str | Path) -> None:
        """Compare the folder's files with the manifest; derived manifests have no hashes.

        Raises:
            CheckpointError: ``missing_file`` or ``hash_mismatch``, naming the file.
        """
        for name, recorded in self.files.items():
            path = Path(folder) / name
            if not path.is_file():
                raise CheckpointError("missing_file", f"{path} is listed in the manifest but missing from the folder")
            if path.stat().st_size != recorded.get("bytes") or file_hash(path) != recorded.get("sha256"):
                raise CheckpointError("hash_mismatch", f"{path} differs from the file that the manifest describes")


@dataclass(frozen=True)
class GenerationDefaults:
    """Sampling defaults of a checkpoint; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0

    @classmethod
    def read(cls, folder: str | Path) -> GenerationDefaults:
        """Read these two fields of ``generation_config.json``, if there is one.

        The others are ignored: the released 7B files name a wrong BOS and a repetition penalty that would spoil images.

        Raises:
            CheckpointError: ``broken_file`` for values that nothing can be sampled with, unless do_sample is false.
        """
        path = Path(folder) / "generation_config.json"
        if not path.exists():
            return cls()
        try:
            data = read_json(path)
        except ConfigError as error:
            raise CheckpointError("broken_file", str(error)) from error
        sampled = data.get("do_sample")
        if sampled is not None and not isinstance(sampled, bool):
            raise CheckpointError("broken_file", f"{path}: do_sample is {sampled!r}, expected true or false")
        if sampled is False:
            return cls()
        given = cls(_bounded(path, data, "temperature", math.inf), _bounded(path, data, "top_p", 1.0) or 1.0)
        return given if sampled else cls()

    def to_json(self) -> dict[str, Any]:
        """Convert to a ``generation_config.json`` object."""
        if self.temperature == 0.0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}


def _bounded(path: Path, data: Mapping[str, Any], name: str, most: float) -> float:
    """A number from 0 to ``most``; 1 if the file has none."""
    value = data.get(name)
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or math.isinf(value):
        bounds = "of at least 0" if math.isinf(most) else f"from 0 to {most:g}"
        raise CheckpointError("broken_file", f"{path}: {name} is {value!r}, expected a number {bounds}")
    return float(value)


def nearest_verifier(name: str, find: Callable[[str], Manifest | None]) -> str | None:
    """The checkpoint that judges the drawings of `name`: itself, or the first verifier among its bases; None: no one.

    `find` returns a checkpoint's manifest, or None if there is none of that name.
    """
    seen: set[str] = set()
    while name not in seen and (manifest := find(name)) is not None:
        if manifest.verifier:
            return name
        seen.add(name)
        name = manifest.base or ""
    return None


def without_measurements(manifest: Manifest) -> Manifest:
    """The manifest for other weights: without what was measured or trained with these."""
    extra = {key: value for key, value in manifest.extra.items() if key != "metrics"}
    return replace(manifest, extra=extra, card_notes="", verifier="")


def adapter_manifest(folder: Path, base: Path, **lineage: Any) -> Manifest:
    """The manifest of an adapter: that of its base in another folder, with a name and lineage of its own.

    Raises:
        CheckpointError: as :meth:`Manifest.read`, for the base.
    """
    of_base = Manifest.read(base)
    return replace(
        without_measurements(of_base),
        name=_name(folder),
        base=of_base.name,
        description=f"A LoRA adapter of {of_base.name}, merged as it is loaded.",
        lineage={"stage": "adapter", "start": of_base.name, **lineage},
        files={},
        created_at="",
        derived=True,
    )


def _name(folder: Path) -> str:
    """The name of a folder, or of the repository if it lies in the hub's cache."""
    resolved = folder.resolve()
    parts = [part for part in resolved.parts if part.startswith("models--")]
    return parts[-1].split("--")[-1] if parts else resolved.name


def _derive(folder: Path) -> Manifest:
    """Derive a manifest for a released checkpoint: 7B Chameleon, Anole, Omni-R1."""
    names = set(read_entries(folder))
    name = _name(folder)
    draws = any(tensor.startswith("model.vqmodel.decoder.") for tensor in names)
    sees = any(tensor.startswith("model.vqmodel.encoder.") for tensor in names)
    return Manifest(
        name=name,
        template="tagged" if "zero" in name.lower() else "plain",
        licence=CHAMELEON_LICENCE,
        description="A released checkpoint of the Chameleon family.",
        capabilities=Capabilities(images_in_answer=draws, images_in_question=sees),
        images=ImageCount(0, 4 if sees else 0),
        perception=Perception(tau=3.0),
        created_at="",
        derived=True,
    )
