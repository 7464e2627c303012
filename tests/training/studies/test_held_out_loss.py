"""Losses on unseen traces: equal to the training loop's, per task, plus a fitted map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from tests.tiny import make_tiny_checkpoint
from training.data.token_sets import EncodedTask, TokenSet, id_to_code, make_batch
from training.pesft.loop import SFTModel, SFTSpec, batch_loss
from training.studies.held_out_loss import W_FILE, held_out_losses, saved_projection


def traces(count: int, first: int = 0) -> list[EncodedTask]:
    """Artificial traces of one to three images of four codes."""
    rng = np.random.default_rng(first)
    codes = [[tuple(rng.integers(64, size=4).tolist()) for _ in range(4)] for _ in range(count)]
    return [
        EncodedTask("Where?", c[0], tuple((f"Step {k}.", "", c[k]) for k in range(1, 2 + n % 3)), "red")
        for n, c in enumerate(codes)
    ]


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedCheckpoint:
    return load_checkpoint(make_tiny_checkpoint(tmp_path / "tiny"))


def test_sums_equal_the_training_loss(loaded: LoadedCheckpoint) -> None:
    tasks = traces(20)  # more than one forward
    torch.manual_seed(0)
    projection = nn.Linear(64, 8)
    (loaded.folder / "train").mkdir()
    save_file({f"perception.{k}": v.detach() for k, v in projection.state_dict().items()}, loaded.folder / W_FILE)
    found = held_out_losses(loaded, tasks, traces(8, first=1))
    data = TokenSet.build((t.render(loaded.template) for t in tasks), 512)
    batch = make_batch(data, np.arange(20), id_to_code(loaded.vocab))
    spec = SFTSpec(1, 0.1, perception_weight=1.0, perception_reduction="mean", precision="fp32")
    assert loaded.vq is not None
    model = SFTModel(loaded.transformer, loaded.vq.codebook, id_to_code(loaded.vocab), projection)
    with torch.no_grad():
        _, metrics = batch_loss(model, batch, spec)
    for parts, name in ((found.text, "text"), (found.image, "image"), (found.perception, "perception")):
        assert parts is not None
        sums, counts = np.array(parts).sum(0)
        assert sums / counts == pytest.approx(metrics[f"loss/{name}"], rel=1e-4)
    assert [count for _, count in found.image] == [4.0 * (1 + n % 3) for n in range(20)]


def test_missing_w_leaves_the_fitted_loss(loaded: LoadedCheckpoint) -> None:
    assert saved_projection(loaded.folder) is None
    found = held_out_losses(loaded, traces(4), traces(8, first=1))
    assert found.perception is None
    assert all(total > 0 for total, _ in found.perception_fitted)


def test_fitted_map_finds_a_linear_relation(loaded: LoadedCheckpoint) -> None:
    # Images of one code of eight each: the state reading it determines the next one, except at the first position.
    rng = np.random.default_rng(0)
    same = [EncodedTask("Where?", (0,) * 4, (("Step.", "", (int(c),) * 4),), "red") for c in rng.integers(8, size=160)]
    mixed = [replace(task, steps=(("Step.", "", tuple(rng.integers(8, size=4).tolist())),)) for task in same]
    alike, apart = held_out_losses(loaded, same[:40], same[40:]), held_out_losses(loaded, mixed[:40], mixed[40:])
    left = [np.array(f.perception_fitted).sum(0) for f in (alike, apart)]
    assert left[0][0] / left[0][1] < 0.5 * alike.spread
    assert left[1][0] / left[1][1] > 0.9 * apart.spread


def test_too_long_trace_is_skipped(loaded: LoadedCheckpoint) -> None:
    short = traces(3)
    long = replace(short[0], question="Where? " * 600)
    found = held_out_losses(loaded, [short[0], long, short[1]], traces(4, first=1))
    alone = held_out_losses(loaded, short[:2], traces(4, first=1))
    assert found.image[1] == (0.0, 0.0)
    assert [found.image[0], found.image[2]] == [pytest.approx(part, rel=1e-5) for part in alone.image]
