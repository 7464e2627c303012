"""The context of a job: what its lengths ask for, or what its specification says; nothing is cut silently."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.checkpoint import load_checkpoint
from model.config import LONGEST_CONTEXT, ModelConfig
from tests.training.job_helpers import events, make_context, pesft_spec
from tests.training.perpo.test_job import context as perpo_context
from training.jobs.checkpoints import with_context_for
from training.jobs.context import JobContext
from training.perpo import job as perpo
from training.pesft import job as pesft

OWN = 512  # of the tiny checkpoint


def trained(run: Callable[[JobContext], dict[str, Any]], ctx: JobContext) -> int:
    """The context of the checkpoint that a job makes, which its result repeats."""
    result = run(ctx)
    config = ModelConfig.read(Path(result["folder"]))
    assert result["context"] == config.transformer.context_len
    return config.transformer.context_len


def warned(ctx: JobContext) -> list[str]:
    return [row["detail"] for row in events(ctx.folder, "warning") if row["code"] == "context_exceeded"]


@pytest.mark.parametrize(
    ("hyper", "expected", "words"),
    [({}, OWN, ""), ({"max_len": 900}, 900, ""), ({"max_len": 900, "context": 600}, 600, "900 tokens")],
    ids=str,
)
def test_pesft_takes_the_context_of_its_longest_sample(
    tiny_checkpoint: Path, tmp_path: Path, hyper: dict[str, int], expected: int, words: str
) -> None:
    ctx = make_context(tmp_path, pesft_spec(steps=1, **hyper), tiny_checkpoint)
    assert trained(pesft.run, ctx) == expected
    assert [words in detail for detail in warned(ctx)] == [True] * bool(words)


def test_perpo_takes_the_context_of_its_longest_completion(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ctx = perpo_context(tiny_checkpoint, tmp_path, steps=1, max_new_tokens=OWN, rollouts_per_prompt=2)
    assert OWN < trained(perpo.run, ctx) < 2 * OWN
    assert warned(ctx) == []
    assert max(row["values"]["response/len"] for row in events(tmp_path, "metrics")) <= OWN


def test_perpo_takes_the_context_of_its_longest_question(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"question": "red star " * repeats, "answer": "red"} for repeats in (2, OWN)]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "jsonl", "path": str(file), "num_samples": 2}
    ctx = perpo_context(tiny_checkpoint, tmp_path, steps=1, data=data, rollouts_per_prompt=2)
    assert trained(perpo.run, ctx) > OWN
    assert events(tmp_path, "warning") == []


def test_no_context_exceeds_the_longest_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ctx, base = make_context(tmp_path, pesft_spec(), tiny_checkpoint), load_checkpoint(tiny_checkpoint)
    assert with_context_for(ctx, base, LONGEST_CONTEXT + 1, None).config.transformer.context_len == LONGEST_CONTEXT
    (detail,) = warned(ctx)
    assert "16,385" in detail
    assert "16,384" in detail
