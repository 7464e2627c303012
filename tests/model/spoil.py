"""Ways to damage a copy of a checkpoint, and the expected errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint.checkpoint import load_checkpoint, validate_checkpoint
from model.checkpoint.manifest import Manifest
from model.checkpoint.shards import CheckpointError

LM = "model-lm.safetensors"


def assert_rejected(folder: Path, code: str, detail: str, *, loads: bool = False) -> None:
    """Assert that validation fails with that code and names the culprit; and by default loading, too."""
    with pytest.raises(CheckpointError) as error:
        validate_checkpoint(folder)
    assert error.value.code == code, error.value
    assert detail in error.value.detail, error.value
    if not loads:
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(folder)
        assert error.value.code == code


def change_lm(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], *, rehash: bool = True) -> None:
    """Change the transformer's tensors; without `rehash` the manifest keeps the old hash."""
    state = load_file(folder / LM)
    change(state)
    save_file(state, folder / LM, metadata={"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    kept = {name: file for name, file in index["weight_map"].items() if file != LM}
    index["weight_map"] = kept | dict.fromkeys(state, LM)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if rehash:
        Manifest.read(folder).write(folder)


def change_json(folder: Path, name: str, **values: Any) -> None:
    """Set keys of a JSON file and update its hash in the manifest."""
    data = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(data | values))
    Manifest.read(folder).write(folder)
