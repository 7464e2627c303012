"""A tiny checkpoint in memory, and one that draws of its own accord."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.checkpoint import LoadedCheckpoint, load_checkpoint, save_checkpoint
from model.engine.engine import Engine
from model.transformer import CausalAttention


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def loaded(tiny_checkpoint: Path) -> LoadedCheckpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture
def engine(loaded: LoadedCheckpoint) -> Engine:
    return Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=16)


@pytest.fixture(scope="session")
def drawing_checkpoint(tmp_path_factory: pytest.TempPathFactory, loaded: LoadedCheckpoint) -> Path:
    """The tiny checkpoint with begin-image made likely (about every tenth token at temperature 1), EOS impossible."""
    vocab, transformer = loaded.vocab, loaded.transformer
    state = {key: value.clone() for key, value in transformer.state_dict().items()}
    ids = torch.tensor(vocab.text_ids).repeat(1, 3)[:, :500]
    with torch.no_grad():
        hidden = transformer(ids, torch.arange(ids.shape[1])[None], CausalAttention())[0]
        mean = hidden.mean(0)
        direction = mean / mean.square().sum()
        usual = transformer.logits(hidden)[:, list(vocab.text_ids)].logsumexp(-1).mean()
        state["lm_head.weight"][vocab.boi_id] = direction * (usual - 2.0)
        state["lm_head.weight"][vocab.eos_id] = direction * -30.0
    assert loaded.vq is not None
    folder = tmp_path_factory.mktemp("checkpoints") / "drawing"
    save_checkpoint(
        folder,
        config=loaded.config,
        transformer_state=state,
        vq_state=loaded.vq.state_dict(),
        tokenizer=(loaded.folder / "tokenizer.json"),
        manifest=loaded.manifest,
        dtype=torch.float32,
    )
    return folder
