"""A tiny checkpoint in memory, and one that draws of its own accord."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.checkpoint import LoadedCheckpoint, load_checkpoint, save_checkpoint
from model.engine.engine import Engine
from model.transformer import CausalAttention, Transformer


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
    """The tiny checkpoint with begin-image made likely (about every tenth token at temperature 1), EOS impossible.

    Column 0 of the residual stream is made a positive constant, on which those two logits alone depend.
    """
    vocab, transformer = loaded.vocab, Transformer(loaded.config.transformer)
    state = {key: value.clone() for key, value in loaded.transformer.state_dict().items()}
    state["model.embed_tokens.weight"][:, 0] = 1.0
    for name, value in state.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            value[0] = 0.0
    head = state["lm_head.weight"]
    head[:, 0] = head[vocab.boi_id] = head[vocab.eos_id] = 0.0
    transformer.load_state_dict(state)
    ids = torch.tensor(vocab.text_ids).repeat(3)[None, :500]
    with torch.no_grad():
        hidden = transformer(ids, torch.arange(ids.shape[1])[None], CausalAttention())[0]
        usual = transformer.logits(hidden)[:, list(vocab.text_ids)].logsumexp(-1).mean()
        head[vocab.boi_id, 0] = (usual - 2.0) / hidden[:, 0].mean()
        head[vocab.eos_id, 0] = -1000.0
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
