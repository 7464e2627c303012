"""POST /v1/rewards for stored traces, on the real engine: the components that training computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.client import BadInput, Conflict, NotFound
from app.client.types import Trace
from app.traces.records.rewards import TraceParts
from model.checkpoint.checkpoint import load_checkpoint
from model.checkpoint.shards import SHIPPED
from model.images.codes import decode_codes, encode_images
from tests.app.traces.real import FIRST_TASK, MODEL, Studio
from training.perpo.functional import judged
from training.perpo.rollout import Prompt
from training.scoring.rewards import Scorer, Scores
from training.spec.hyperparameters import RewardHyperparameters
from training.world.checkers import judge_drawings
from training.world.task import identity_steps
from training.world.world import task_of_id

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A server that accepts the examples as rewards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("OMNI_R1_REWARDS_DIR", str(ROOT / "examples"))
        running = Studio(tmp_path_factory.mktemp("studio") / "home", monkeypatch)
        yield running
        running.close()
    torch.set_num_threads(threads)


def response_of(studio: Studio, trace: Trace) -> list[int]:
    """The stored tokens of a trace."""
    _, response = studio.server.services.tokens._stored(trace["id"])
    return [token for step in response.steps for token in step.ids] + list(response.last.ids)


def test_trace_gets_the_components_of_training(studio: Studio) -> None:
    loaded = load_checkpoint(SHIPPED / MODEL)
    assert loaded.vq is not None
    scorer = Scorer(loaded.template, loaded.vq.codebook, loaded.manifest.perception)
    weights = RewardHyperparameters()
    for seed, slice_ in enumerate(("natural", "structured", "diagrammatic", "operational")):
        trace = studio.asked(seed, slice_)
        task = task_of_id(trace["task_id"])
        seen = encode_images(loaded.vq, [task.image])[0]
        wanted = scorer.score(
            response_of(studio, trace), task.answer, seen=seen, exact=True, identity_steps=identity_steps(task)
        )
        found = studio.client.trace_reward(trace["id"])
        assert (found["accuracy"], found["format"], found["check"]) == (wanted.accuracy, wanted.format, "exact")
        assert found["perception"] == pytest.approx(wanted.perception, abs=1e-4)
        assert found["total"] == pytest.approx(wanted.total, abs=1e-4)
        assert found["weights"] == {name: getattr(weights, name) for name in ("alpha", "beta", "gamma", "functional")}
        assert [one["check"] for one in found["drawings"]] == [image.verdict for image in wanted.images]
        assert [one["energy"] for one in found["drawings"]] == pytest.approx(
            [i.energy for i in wanted.images], abs=1e-3
        )
        drawn = [codes for _, codes in wanted.steps if codes is not None]
        images = iter(decode_codes(loaded.vq, [seen, *drawn]))
        before = next(images)
        right, total = judge_drawings(task, before, [next(images) if codes else None for _, codes in wanted.steps])
        assert (found["drawings_right"], found["drawings_total"]) == (right, total)
        assert sum(bool(one["right"]) for one in found["drawings"]) == right
        assert None not in {one["right"] for one in found["drawings"]}
        prompt = Prompt(0, (1,), task.question, (seen,), task.answer, task=task)
        (whole,) = judged(loaded.vq, prompt, Scores([wanted], []), weight=2.0).rewards
        assert whole is not None
        weighted = studio.client.trace_reward(trace["id"], reward={"functional": 2.0})
        assert weighted["functional"] == found["functional"] == whole.functional
        assert weighted["total"] == pytest.approx(whole.total, abs=1e-4)


def test_verdict_of_each_drawing_is_in_the_trace(studio: Studio) -> None:
    trace = studio.asked(5, "operational")
    rights = [step["image"]["right"] for step in trace["steps"] if "image" in step]
    assert sum(map(bool, rights)) == trace["verdict"]["drawings_right"]


def test_own_reference_replaces_the_task(studio: Studio) -> None:
    trace = studio.asked(1, "natural")
    answer = trace["answer"]
    assert answer is not None
    right = studio.client.trace_reward(trace["id"], f"the {answer}")
    assert (right["accuracy"], right["check"]) == (1.0, "text")
    assert studio.client.trace_reward(trace["id"], "something else")["accuracy"] == 0.0


def test_given_answer_replaces_the_traces(studio: Studio) -> None:
    trace = studio.asked(1, "natural")
    found = studio.http.post("/v1/rewards", json={"trace_id": trace["id"], "answer": "nothing of the kind"}).json()
    assert (found["accuracy"], found["answer"]) == (0.0, "nothing of the kind")
    assert found["format"] == 1.0


def test_weights_make_the_total(studio: Studio) -> None:
    trace = studio.asked(2, "structured")
    found = studio.client.trace_reward(trace["id"], reward={"alpha": 0.0, "beta": 2.0, "gamma": 1.0})
    assert found["total"] == pytest.approx(2.0 * found["format"] + (found["perception"] or 0.0))


@pytest.mark.parametrize(
    ("steps", "rights", "drawings", "share"),
    [
        ([1, 2, 3], {1: True, 2: False, 3: True}, (2, 4), 0.5),
        ([1, 2, 3], {1: False, 3: True}, (1, 3), 0.5),  # the second could not be judged
        ([], {}, (0, 2), 0.0),
        ([1, 2], {}, (2, 2), None),  # of an earlier version
        ([1], {}, None, None),  # without a task
    ],
)
def test_share_of_right_drawings_leaves_the_unjudged_out(
    steps: list[int], rights: dict[int, bool], drawings: tuple[int, int] | None, share: float | None
) -> None:
    parts = TraceParts(
        question="?",
        slice=None,
        answer="red",
        reference="red",
        steps=[],
        format=1.0,
        images=[(step, None) for step in steps],
        perception=None,
        rights=rights,
        drawings=drawings,
        num_tokens=9,
        image_ids=([], {}),
    )
    assert parts.functional == share


def test_own_reward_sees_the_whole_trace(studio: Studio) -> None:
    trace = studio.asked(2, "operational")
    custom = [{"file": "own_reward.py:tidy", "weight": 3.0}, {"file": "own_reward.py:names_the_answer", "images": True}]
    found = studio.client.trace_reward(trace["id"], reward={"custom": custom})
    tidy = found["custom"]["tidy"]
    drawn = sum("image" in step for step in trace["steps"]) / len(trace["steps"])
    assert tidy["parts"]["drawn"] == pytest.approx(drawn / 3)
    assert (tidy["weight"], tidy["value"]) == (3.0, pytest.approx(sum(tidy["parts"].values())))
    plain = studio.client.trace_reward(trace["id"])
    extra = sum(one["weight"] * one["value"] for one in found["custom"].values())
    assert (found["total"] or 0.0) - (plain["total"] or 0.0) == pytest.approx(extra)


def test_trace_without_a_task_needs_a_reference(studio: Studio) -> None:
    task = studio.client.task(slice="natural", seed=FIRST_TASK)
    trace = studio.ended(studio.client.create_trace(task["question"], [task["image_id"]])["id"])
    with pytest.raises(BadInput, match=r"body\.reference"):
        studio.client.trace_reward(trace["id"])
    found = studio.client.trace_reward(trace["id"], str(trace["answer"]))
    assert found["accuracy"] == 1.0
    assert {one["right"] for one in found["drawings"]} == {None}
    assert not {"drawings_total", "functional"} & found.keys()
    unknown = studio.client.trace_reward(trace["id"], str(trace["answer"]), reward={"functional": 1.0})
    assert (found["total"] is not None, unknown["total"]) == (True, None)


def test_branch_is_scored_with_its_kept_steps(studio: Studio) -> None:
    parent = next(t for seed in range(20) if len((t := studio.asked(seed, "operational"))["steps"]) >= 2)
    (made,) = studio.client.branch(parent["id"], after_step=1)
    branch = studio.ended(made["id"])
    found = studio.client.trace_reward(branch["id"])
    assert len(found["drawings"]) == sum("image" in step for step in branch["steps"])
    assert found["total"] is not None


def test_paused_trace_is_not_scored(studio: Studio) -> None:
    paused = studio.paused(studio.ask(3, mode="step")["id"])
    with pytest.raises(Conflict) as live:
        studio.client.trace_reward(paused["id"])
    assert live.value.code == "trace_live"
    with pytest.raises(NotFound):
        studio.client.trace_reward("tr_1m8hecv6a000vmjrcae2")


def test_own_reward_of_an_answer_alone(studio: Studio) -> None:
    found = studio.client.reward("red", "red", reward={"custom": {"file": "own_reward.py:tidy"}})
    assert found["custom"]["tidy"]["value"] == 0.0
    assert "total" not in found
