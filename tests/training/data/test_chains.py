"""Chains of thought: splitting, and the chains of each source."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from training.data.chains import ChainError, TextChain, assigned_ids, m3cot_chain, split_steps
from training.data.rows import Rejection
from training.spec.hyperparameters import ZeroHyperparameters
from training.spec.spec import JsonlData, M3CoTData, UniTasksData
from training.world.world import EVAL_SEED_MIN
from training.zero.chain_sources import read_chains

SETTINGS = ZeroHyperparameters(max_steps=3)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("1. Look left.\n2. Look right.\n3. Done.", ["Look left.", "Look right.", "Done."]),
        ("Step 1: Look at 3.5 cm.\nStep 2: Add it.", ["Look at 3.5 cm.", "Add it."]),
        ("We begin.\n1) First\n   more of it\n2) Second", ["We begin. First more of it", "Second"]),
        ("It is 3.5 kg. Dr. Lee adds 2. So: 5.5 kg!", ["It is 3.5 kg.", "Dr. Lee adds 2.", "So: 5.5 kg!"]),
        ('Is it B? "Yes." Then we stop', ["Is it B?", '"Yes."', "Then we stop"]),
        ("A paragraph\n\nand one more", ["A paragraph", "and one more"]),
        ("e.g. Figure 2 shows it, cf. Table 3. It is red.", ["e.g. Figure 2 shows it, cf. Table 3.", "It is red."]),
    ],
)
def test_rationale_is_split_at_numbers_or_sentences(text: str, steps: list[str]) -> None:
    assert split_steps(text, max_steps=9) == steps


def test_list_is_kept_without_empty_steps() -> None:
    assert split_steps(["One. Two.", "  ", "Three\nlines"], max_steps=9) == ["One. Two.", "Three lines"]
    with pytest.raises(ValueError, match="expects a list"):
        split_steps("a text", max_steps=2, by="list")


def test_merging_neighbours_keeps_every_word() -> None:
    text = "Short one. A much, much longer second sentence stands here. Tiny. Small too. The end comes last."
    whole = split_steps(text, max_steps=99)
    assert len(whole) == 5
    for limit in (4, 3, 2, 1):
        merged = split_steps(text, max_steps=limit)
        assert len(merged) == limit
        assert " ".join(merged) == " ".join(whole) == text
    assert split_steps(text, max_steps=4)[2] == "Tiny. Small too."  # the shortest pair
    with pytest.raises(ValueError, match="at least 1"):
        split_steps(text, max_steps=0)


def row(**changes: Any) -> dict[str, Any]:
    """A row in M3CoT's format."""
    given = {
        "id": "physical-commonsense-1",
        "category": "physical",
        "image_id": "1",
        "question": "What burns?",
        "choices": ["wood", "stone"],
        "answer": "A",
        "rationale": "Wood is dry. Stone does not burn.",
        "split": "train",
        "image": None,
        "domain": "commonsense",
        "topic": "physical-commonsense",
        "context": "",
    }
    return given | changes


def test_m3cot_choices_and_answer_are_written_out() -> None:
    chain = m3cot_chain(row(answer="b"), None, max_steps=4)
    assert chain.question == "What burns?\n(A) wood\n(B) stone"
    assert chain.answer == "(B) stone"
    assert chain.steps == ("Wood is dry.", "Stone does not burn.")
    assert chain.slice == "commonsense"


@pytest.mark.parametrize(
    "changes", [{"rationale": " "}, {"question": ""}, {"answer": "C"}, {"answer": "AB"}, {"answer": None}]
)
def test_invalid_rows_are_rejected(changes: dict[str, Any]) -> None:
    with pytest.raises(ChainError):
        m3cot_chain(row(**changes), None, max_steps=4)


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_m3cot_parquet_is_read_with_rejections(tmp_path: Path) -> None:
    rows = [
        row(id="a", image={"bytes": png("red"), "path": None}),
        row(id="b", split="test"),
        row(id="c", image={"bytes": b"no picture", "path": None}),
        row(id="d", rationale=""),
        row(id="e"),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m3cot.parquet")
    found = list(read_chains(M3CoTData(path=str(tmp_path), split="train"), 0, SETTINGS))
    assert [f.chain_id for f in found if isinstance(f, TextChain)] == ["a", "e"]
    assert [(f.where, f.code) for f in found if isinstance(f, Rejection)] == [
        ("m3cot.parquet:3", "broken_picture"),
        ("m3cot.parquet:4", "broken_row"),
    ]
    first = found[0]
    assert isinstance(first, TextChain)
    assert first.image is not None
    assert first.image.size == (20, 10)


def test_trace_texts_become_chains(tmp_path: Path) -> None:
    rows = [
        {
            "Question": "Where?",
            "Final Answer": "left",
            "p": [1, 2, 3],
            "Text Reasoning Trace": "THOUGHT 1: I look.<image_start>[p]<image_end>\nTHOUGHT 2: There.",
        },
        {
            "Question": "<image_start>[q]<image_end>Where?",
            "Text Reasoning Trace": "I look.",
            "Final Answer": "left",
            "q": [1, 2],
        },
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = list(read_chains(JsonlData(path=str(tmp_path)), 0, SETTINGS))
    assert isinstance(found[0], TextChain)
    assert found[0].steps == ("I look.", "There.")
    assert isinstance(found[1], Rejection)
    assert found[1].where == "t.jsonl:2"


def test_world_chains_avoid_evaluation_seeds() -> None:
    data = UniTasksData(num_samples=4, first_seed=20_000_000)
    chains = [c for c in read_chains(data, 0, SETTINGS) if isinstance(c, TextChain)]
    assert [c.slice for c in chains] == ["natural", "structured", "diagrammatic", "operational"]
    for chain in chains:
        assert chain.task is None or chain.steps == tuple(step.text for step in chain.task.steps)
    with pytest.raises(ValueError, match="evaluation"):
        list(read_chains(UniTasksData(num_samples=2, first_seed=EVAL_SEED_MIN - 1), 0, SETTINGS))
    one = [c for c in read_chains(data, 0, ZeroHyperparameters(max_steps=1)) if isinstance(c, TextChain)]
    assert [len(c.steps) for c in one] == [1] * 4
    merged = [c for c, whole in zip(one, chains, strict=True) if len(whole.steps) > 1]
    assert merged
    assert all(c.task is None for c in merged)  # no reference image belongs to two steps


def test_every_chain_has_a_unique_id() -> None:
    chains = [TextChain(name, "s", "q", None, ("x",), "a") for name in ("a", "", "a", "b")]
    assert [c.chain_id for c in assigned_ids(chains)] == ["a", "row-1", "a-2", "b"]
