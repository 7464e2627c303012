"""Traces of the engine's worker compared with each other: equal up to a near tie."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.checkpoint import load_checkpoint
from model.engine.client import Emitted, Output
from model.engine.engine import Engine
from model.engine.sequence import Sequence
from tests.near_ties import assert_equal_up_to_near_tie, assert_same_image


class Recorder:
    """The newest sequence that this process's engines sampled for each request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sequences: dict[str, Sequence] = {}
        add = Engine.add_request

        def add_and_record(engine: Engine, *args: Any, request_id: str, **more: Any) -> list[Sequence]:
            found = add(engine, *args, request_id=request_id, **more)
            self.sequences[request_id] = found[0]
            return found

        monkeypatch.setattr(Engine, "add_request", add_and_record)

    def assert_same_trace(
        self, checkpoint: Path, first: str, one: Seq[Output], second: str, other: Seq[Output]
    ) -> bool:
        """Assert that two equal requests sampled the same tokens up to a near tie; without a tie, their events are
        equal.

        `first` and `second` name the requests whose sequences have all tokens (for a resumed trace, the last one's).
        Returns whether all tokens are equal.
        """
        a, b = self.sequences[first], self.sequences[second]
        assert a.prompt == b.prompt
        same = assert_equal_up_to_near_tie(load_checkpoint(checkpoint), a.prompt, a.params, a, b)
        if a.response != b.response:
            return False
        assert same == len(a.response)
        assert_same_events(one, other)
        return True


def assert_same_events(one: Seq[Output], other: Seq[Output]) -> None:
    """Assert equal events and codes; images may differ by decoder rounding."""
    mine, theirs = ([o for o in outputs if isinstance(o, Emitted)] for outputs in (one, other))
    assert [(o.event, o.codes) for o in mine] == [(o.event, o.codes) for o in theirs]
    for a, b in zip(mine, theirs, strict=True):
        assert (a.png is None) == (b.png is None)
        if a.png is not None and b.png is not None:
            assert_same_image(a.png, b.png)
