"""A child process and what it prints."""

from __future__ import annotations

import queue
import sys

import pytest

from model.engine.link import ChildLink
from tests.patience import PATIENCE_S

PRINTS = r"import os; os.write(2, b'one\n\n'); os.write(1, b'two \xff\nthree')"


async def test_lines_of_a_child_are_taken_from_both_streams(capfd: pytest.CaptureFixture[str]) -> None:
    lines: queue.Queue[str] = queue.Queue()
    link = ChildLink((sys.executable, "-c", PRINTS), {}, take_line=lines.put)
    link.spawn()
    assert [lines.get(timeout=PATIENCE_S) for _ in range(3)] == ["one", "two \ufffd", "three"]
    await link.end(patience=PATIENCE_S)
    assert capfd.readouterr() == ("", "")
