"""What saving a checkpoint takes of a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import model.checkpoint.checkpoint
from model.checkpoint.checkpoint import load_checkpoint
from model.low_rank import TARGETS
from tests.model.live import Live
from tests.training import job_helpers
from tests.training.perpo import test_job as perpo_helpers
from training.jobs.context import JobContext
from training.perpo import job as perpo
from training.pesft import job as pesft

LORA: dict[str, Any] = {"rank": 2, "alpha": 4.0}
Saves = tuple[type, str, Callable[[Path, Path], object]]


def run_pesft(folder: Path, base: Path) -> object:
    spec = job_helpers.pesft_spec(precision="fp32", lora=LORA, steps=1)
    return pesft.run(job_helpers.make_context(folder, spec, base))


def run_perpo(folder: Path, base: Path) -> object:
    ctx: JobContext = perpo_helpers.context(base, folder, lora=LORA, steps=1, ema_decay=0.5)
    return perpo.run(ctx)


@pytest.mark.parametrize(
    "saves", [(pesft._Job, "on_save", run_pesft), (perpo._Run, "save", run_perpo)], ids=["pesft", "perpo"]
)
def test_a_save_merges_one_matrix_at_a_time(
    saves: Saves, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of the device are fp32 here, those of the file bf16."""
    owner, name, run = saves
    save, live = getattr(owner, name), Live(torch.float32)

    def watched(*args: Any, **how: Any) -> None:
        with live:
            save(*args, **how)

    monkeypatch.setattr(owner, name, watched)
    monkeypatch.setattr(model.checkpoint.checkpoint, "validate_checkpoint", lambda *_, **__: None)  # reads the file
    run(tmp_path, tiny_checkpoint)
    transformer = load_checkpoint(tiny_checkpoint).transformer
    sizes = [p.nbytes for name, p in transformer.named_parameters() if name.split(".")[-2] in TARGETS]
    assert max(sizes) <= live.peak < 1.1 * max(sizes)
