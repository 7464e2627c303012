"""Codes, packing and batches: the inputs of a training step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.text.template import Rendered
from training.data.token_sets import (
    BatchPlan,
    EncodedTask,
    ImageCoder,
    TokenSet,
    encode_tasks,
    id_to_code,
    make_batch,
    training_tasks,
    unchanged_cells,
)
from training.world.world import EVAL_SEED_MIN


@pytest.fixture(scope="module")
def nano(family: Path) -> LoadedCheckpoint:
    """A checkpoint of the embedded family's shape after a few steps."""
    return load_checkpoint(family / "nano-base")


def test_unchanged_cells_need_equal_pixels() -> None:
    before = np.zeros((1, 16, 16, 3), np.uint8)
    after = before.copy()
    after[0, 7, 8, 2] = 1  # row 7, column 8: the upper right of four 8x8 cells
    assert unchanged_cells(before, after, (2, 2)).tolist() == [[True, False, True, True]]


def test_chain_keeps_codes_of_unchanged_cells(nano: LoadedCheckpoint) -> None:
    assert nano.vq is not None
    coder = ImageCoder(nano.vq)
    tasks = [task for task in training_tasks(20_000_000, 8) if task.steps[0].skill in ("box", "mark", "line")]
    for task in tasks:
        question, first = coder.chains([[task.image, task.steps[0].image]])[0]
        images = np.stack([np.asarray(task.image), np.asarray(task.steps[0].image)])
        same = unchanged_cells(images[:1], images[1:], nano.vq.grid)[0]
        assert 0 < same.sum() < len(same)
        assert all(a == b for a, b, kept in zip(question, first, same, strict=True) if kept)


def test_trace_variants_drop_or_replace_images(nano: LoadedCheckpoint) -> None:
    codes = tuple(range(64))
    task = EncodedTask("Where?", codes, (("I look.", "It is left.", codes),), "left")
    ids = {name: task.render(nano.template, name).ids for name in ("interleaved", "text", "state")}
    boi = nano.vocab.boi_id
    assert [ids[name].count(boi) for name in ("interleaved", "text", "state")] == [2, 1, 1]
    assert nano.tokenizer.decode(ids["text"]).endswith("I look.\nFinal Answer: left")
    assert "It is left." in nano.tokenizer.decode(ids["state"])
    with pytest.raises(ValueError, match="unknown variant"):
        task.render(nano.template, "both")


def test_training_rejects_evaluation_seeds() -> None:
    with pytest.raises(ValueError, match="evaluation"):
        list(training_tasks(EVAL_SEED_MIN - 1, 2))


def test_shares_weight_the_families() -> None:
    shares = {"find": 3.0, "tilt": 1.0}
    families = Counter(task.family for task in training_tasks(20_000_000, 400, shares))
    assert families.keys() == shares.keys()
    assert 0.65 < families["find"] / 400 < 0.85
    again = list(training_tasks(20_000_100, 3, shares))
    assert [t.question for t in again] == [t.question for t in list(training_tasks(20_000_000, 103, shares))[100:]]
    with pytest.raises(ValueError, match="unknown families: bend"):
        list(training_tasks(20_000_000, 1, {"bend": 1.0}))


def test_long_sequences_are_dropped_and_counted() -> None:
    rendered = [Rendered([1] * n, [0] + [1] * (n - 1)) for n in (3, 9, 5)]
    data = TokenSet.build(rendered, max_len=5)
    assert data.lengths.tolist() == [3, 5]
    assert data.dropped == 1
    with pytest.raises(ValueError, match="no sequence is left"):
        TokenSet.build(rendered, max_len=2)


def test_epochs_shuffle_by_seed_and_step() -> None:
    lengths = np.array([5, 7, 9, 11, 3, 8, 6, 4])
    plan = BatchPlan(lengths, 16, seed=3)
    steps = len(plan._make_epoch(0))
    assert steps > 1
    for epoch in range(3):
        seen = np.concatenate([plan[epoch * steps + i] for i in range(len(plan._make_epoch(epoch)))])
        assert sorted(seen.tolist()) == list(range(8))
    again = BatchPlan(lengths, 16, seed=3)
    assert again[5].tolist() == plan[5].tolist()
    assert [BatchPlan(lengths, 16, seed=4)[i].tolist() for i in range(4)] != [plan[i].tolist() for i in range(4)]


def test_invariant_9_targets_are_response_codes_only(nano: LoadedCheckpoint) -> None:
    vocab = nano.vocab
    prompt, codes = [vocab.bos_id, *vocab.image_ids((5,) * 64)], tuple(range(64))
    response = [*vocab.image_ids(codes), vocab.eos_id]
    data = TokenSet.build([Rendered(prompt + response, [0] * len(prompt) + [1] * len(response))] * 2, 768)
    batch = make_batch(data, np.array([0, 1]), id_to_code(vocab))
    assert batch.targets.tolist() == response * 2
    assert batch.ids[batch.predictors + 1].tolist() == response * 2
    assert batch.codes.tolist() == list(codes) * 2  # Omega: the response's codes, not the question's
    assert int(batch.is_code.sum()) == 128


def test_token_set_round_trip(tmp_path: Path) -> None:
    data = TokenSet.build([Rendered([1, 2, 3], [0, 1, 1]), Rendered([4, 5], [0, 1])], 8)
    data.save(tmp_path / "data.npz")
    again = TokenSet.load(tmp_path / "data.npz")
    assert again.ids.tolist() == data.ids.tolist()
    assert again.offsets.tolist() == data.offsets.tolist()


def test_encoded_tasks_keep_texts_and_order(nano: LoadedCheckpoint) -> None:
    assert nano.vq is not None
    tasks = list(training_tasks(20_000_000, 5))
    encoded = encode_tasks(tasks, ImageCoder(nano.vq))
    assert [e.question for e in encoded] == [t.question for t in tasks]
    assert [len(e.steps) for e in encoded] == [len(t.steps) for t in tasks]
    rendered = encoded[0].render(nano.template)
    assert torch.tensor(rendered.loss_mask).sum() == len(rendered.ids) - len(
        nano.template.prompt_ids(tasks[0].question, [encoded[0].image])
    )
