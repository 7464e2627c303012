"""An engine on a tiny checkpoint, with one thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.engine.engine import Engine

PAGE, SPARE = 16, 30


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["slots", "pages"])
def cache_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine of a test keeps whole contexts, or few small pages, so that sequences have to wait for some.

    With pages, passes have the fixed shapes of CUDA graphs, and run plainly.
    """
    if request.param == "slots":
        return
    init = Engine.__init__

    def paged(self: Engine, transformer: Any, *arguments: Any, **options: Any) -> None:
        context = options.get("context_len") or transformer.config.max_position_embeddings
        pages = {"num_pages": -(-context // PAGE) + SPARE, "page": PAGE, "graphs": True}
        init(self, transformer, *arguments, **options, **pages)

    monkeypatch.setattr(Engine, "__init__", paged)


@pytest.fixture
def engine(loaded: LoadedCheckpoint) -> Engine:
    return Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=16)
