"""For an engine on Ray: what `tests.app.traces.real` takes from the one in its process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pytest

from app.traces.records.tokens import response_of
from model.checkpoint.checkpoint import load_checkpoint
from model.cluster.engine import RayEngine
from model.cluster.replicas import Replicas
from model.engine.messages import Mark
from model.engine.phases import PhaseRules
from model.engine.sequence import SamplingParams, first_phase
from model.worker.requests import ResumeState
from tests.app.conftest import Server
from tests.app.traces import real
from tests.near_ties import Answer


def engine(checkpoints: Mapping[str, str], *, num_slots: int) -> RayEngine:
    """Two replicas on the cluster. With marks, since these carry the prompts."""
    assert not checkpoints
    return RayEngine(num_replicas=2, retry=True, num_slots=num_slots, device="cpu")


class Ungated:
    """In place of `Gate`: skips tests that hold the engine, which is in other processes here."""

    most_running = 0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None: ...

    def open(self, steps: int | None) -> None:
        """Skip the test, unless nothing is held anyway."""
        if steps is not None:
            pytest.skip("an engine in another process cannot be held")

    after = open


class Drawn(Answer):
    """A response as the database has it; its log-probabilities are too coarse there to be compared."""

    def __init__(self, start: ResumeState, tokens: list[int]) -> None:
        self.prompt, self.params, self.response = start.prompt, start.sampling(), tokens
        super().__init__(tokens, legal(start.prompt, self.params, tokens), [None] * len(tokens))


class Marked(Mapping[str, Drawn]):
    """In place of `Recorder`: the response of each request that a replica has begun to answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._starts: dict[str, ResumeState] = {}
        self.server: Server
        noted = Replicas._marked

        def note(replicas: Replicas, client: Any, request_id: str, mark: Mark) -> None:
            if mark.state:
                self._starts[request_id] = ResumeState.from_bytes(mark.state)
            noted(replicas, client, request_id, mark)

        monkeypatch.setattr(Replicas, "_marked", note)

    @property
    def sequences(self) -> Marked:
        return self

    def __getitem__(self, request_id: str) -> Drawn:
        assert self._starts, "no replica has sent a mark"
        if request_id not in self._starts:
            pytest.skip("ended before its first mark, so its prompt is not known here")
        with self.server.services.db.read() as connection:
            found = response_of(connection, request_id)
        assert found is not None
        return Drawn(self._starts[request_id], [token for part in (*found.steps, found.last) for token in part.ids])

    def __iter__(self) -> Iterator[str]:
        return iter(self._starts)

    def __len__(self) -> int:
        return len(self._starts)


def legal(prompt: list[int], params: SamplingParams, response: list[int]) -> list[int]:
    """The legal set of each token of a response."""
    vocab, context = _vocab_and_context()
    rules = PhaseRules(vocab.boi_id, vocab.eoi_id, vocab.eos_id, vocab.codes_per_image)
    state, out = first_phase(rules, context - len(prompt), params), []
    for token in response:
        out.append(int(state.legal))
        state.push(token)
    return out


@cache
def _vocab_and_context() -> tuple[Any, int]:
    loaded = load_checkpoint(real.SHIPPED / real.MODEL)
    return loaded.vocab, loaded.transformer.config.max_position_embeddings
