"""Reliance, attention and interventions on the real engine."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from app.client import Conflict
from app.client.types import Group, Trace
from app.contract.schemas_why import MAX_MEMBERS
from model.checkpoint.shards import SHIPPED
from tests.app.conftest import Server, is_problem
from tests.app.traces.real import FIRST_TASK, Studio
from tests.app.traces.test_groups import assert_group_log, members
from tests.fakes import FakeGeneration, answer_items, png, step_items

GREEDY = {"sampling": {"temperature": 0.0}}


def three_images(studio: Studio) -> Trace:
    """A greedy trace with at least three images."""
    for seed in range(40):
        trace = studio.asked(seed, **GREEDY)
        if sum("image" in step for step in trace["steps"]) >= 3:
            return trace
    raise AssertionError("no trace has three images")


def done(studio: Studio, group: Group) -> Group:
    for _ in studio.client.group_events(group["id"]):
        pass
    return studio.client.group(group["id"])


def test_reliance_covers_every_image_and_repeats_itself(studio: Studio) -> None:
    trace = three_images(studio)
    found = studio.client.reliance(trace["id"])
    drawn = [step["index"] for step in trace["steps"] if "image" in step]
    assert [image["step"] for image in found["images"]] == [0, *drawn]
    ids = [trace["images"][0]["image_id"], *(s["image"]["image_id"] for s in trace["steps"] if "image" in s)]
    assert [image["image_id"] for image in found["images"]] == ids
    for image in found["images"]:
        assert len(image["per_step"]) == len(trace["steps"])
        assert image["per_step"][: image["step"]] == [0.0] * image["step"]
    answer = [token["logprob"] or 0.0 for token in studio.client.tokens(trace["id"])["answer"]]
    assert found["answer_logprob"] <= 0.0
    assert found["answer_logprob"] >= sum(answer) - 0.01  # of these tokens, without the mark and the end
    assert studio.client.reliance(trace["id"]) == found


def test_operational_answers_rely_on_their_last_image(studio: Studio) -> None:
    most = []
    for seed in range(12):
        trace = studio.asked(seed, **GREEDY)
        images = studio.client.reliance(trace["id"])["images"]
        most.append(max(images, key=lambda image: image["reliance"])["step"] == images[-1]["step"])
    assert sum(most) >= 9


def test_attention_grids_sum_to_their_shares(studio: Studio) -> None:
    trace = three_images(studio)
    for step in (None, 1, 2):
        images = studio.client.attention(trace["id"], step)
        assert [image["step"] for image in images] == list(range(len(images)))
        assert len(images) >= 2
        for image in images:
            assert sum(map(sum, image["grid"])) == pytest.approx(image["share"], abs=1e-3)
            assert {len(image["grid"]), *map(len, image["grid"])} == {8}
        assert 0.0 < sum(image["share"] for image in images) <= 1.0001
    assert len(studio.client.attention(trace["id"], 1)) == 2  # the question's and its own


def test_interventions_are_greedy_branches_with_effects(studio: Studio) -> None:
    trace = three_images(studio)
    group = done(studio, studio.client.intervene(trace["id"], ["previous", "blank", "reference", "other"]))
    assert (group["kind"], group["status"], group["trace_id"]) == ("intervention", "completed", trace["id"])
    drawn = [step["index"] for step in trace["steps"] if "image" in step]
    kinds = ("previous", "blank", "reference", "other")
    places = [(one["step"], one["with"]) for one in [*group["effects"], *group["skipped"]]]
    assert sorted(places) == sorted((step, kind) for step in drawn for kind in kinds)
    for effect, branch in zip(group["effects"], members(studio, group), strict=True):
        assert effect["trace_id"] == branch["id"]
        assert branch["parent"] == {
            "trace_id": trace["id"],
            "after_step": effect["step"],
            "edited_steps": [effect["step"]],
            "group_id": None,
        }
        assert branch["sampling"]["temperature"] == 0.0
        assert (effect["answer_before"], effect["answer_after"]) == (trace["answer"], branch["answer"])
        assert effect["changed"] == (trace["answer"] != branch["answer"])
        assert effect["verdict_after"] == branch["verdict"]["answer"]  # type: ignore[index]
        assert effect["later_images_changed"] == differing(trace, branch, effect["step"])
    assert any(effect["changed"] for effect in group["effects"])
    nodes = {node["id"]: node["intervention"] for node in studio.client.tree(trace["id"])["nodes"]}
    assert nodes[trace["id"]] is False
    assert all(nodes[branch_id] for branch_id in group["trace_ids"])
    log = assert_group_log(studio, group["id"])
    assert log[-1].data["effects"] == group["effects"]
    studio.restart()
    assert studio.client.group(group["id"]) == group
    assert studio.events(group["id"]) == log


def differing(one: Trace, other: Trace, after: int) -> int:
    """How many images after a step differ, those included that only one has."""
    mine, theirs = (
        {s["index"]: s["image"]["image_id"] for s in t["steps"] if "image" in s and s["index"] > after}
        for t in (one, other)
    )
    return sum(mine.get(step) != theirs.get(step) for step in {*mine, *theirs})


def test_the_control_repeats_a_greedy_trace(studio: Studio) -> None:
    trace = three_images(studio)
    group = done(studio, studio.client.intervene(trace["id"], ["none"], steps=[2, 1, 2]))
    assert [(e["step"], e["changed"], e["later_images_changed"]) for e in group["effects"]] == [
        (2, False, 0),
        (1, False, 0),
    ]
    for branch in members(studio, group):
        studio.assert_same(branch, trace)


def test_members_run_at_the_same_time(studio: Studio) -> None:
    trace = three_images(studio)
    with studio.gate.after(0):
        group = studio.client.intervene(trace["id"])
        studio.reached(*group["trace_ids"])
        studio.gate.most_running = 0
    done(studio, group)
    assert studio.gate.most_running == len(group["trace_ids"]) >= 3


def test_other_takes_an_unrelated_trace_without_a_task(studio: Studio) -> None:
    task = studio.client.task(slice="operational", seed=FIRST_TASK + 1)
    plain = studio.ended(studio.client.create_trace(task["question"], [task["image_id"]], **GREEDY)["id"])
    for entry in studio.client.traces(limit=100)["data"]:
        if len(studio.client.trace(entry["id"])["steps"]) == 1:
            studio.client.delete(entry["id"])
    short = studio.branched(plain["id"], 1, then="answer")  # nothing else has a single step
    alone = done(studio, studio.client.intervene(short["id"], ["other", "reference"]))
    assert alone["effects"] == []
    assert {skipped["with"] for skipped in alone["skipped"]} == {"other", "reference"}
    assert all(skipped["reason"] for skipped in alone["skipped"])
    for seed in range(2, 40):
        if len(studio.asked(seed, **GREEDY)["steps"]) == len(plain["steps"]):
            break
    group = done(studio, studio.client.intervene(plain["id"], ["other"], steps=[1]))
    assert [effect["with"] for effect in group["effects"]] == ["other"]


def test_a_trace_without_images_has_a_completed_group(studio: Studio) -> None:
    trace = studio.asked(3, sampling={"max_images": 0, "temperature": 0.0})
    group = studio.client.intervene(trace["id"])
    assert (group["status"], group["effects"], group["trace_ids"]) == ("completed", [], [])
    (last,) = studio.events(group["id"])
    assert (last.type, last.data["effects"]) == ("group.completed", [])
    assert studio.client.group(group["id"]) == group
    studio.client.delete_group(group["id"])
    is_problem(studio.http.get(f"/v1/groups/{group['id']}"), 404, "group_not_found")


def test_replaced_images_are_no_training_data_unless_curated(studio: Studio) -> None:
    def exported(**filter_: Any) -> set[str]:
        answer = studio.http.post("/v1/exports", json={"format": "json", "filter": filter_})
        return {trace["id"] for trace in answer.raise_for_status().json()}

    trace = studio.asked(3, **GREEDY)
    group = done(studio, studio.client.intervene(trace["id"], ["blank", "reference"]))
    members_of, all_ = set(group["trace_ids"]), exported()
    assert trace["id"] in all_
    assert not members_of & all_
    assert exported(group=group["id"]) == members_of
    first, *_ = group["trace_ids"]
    studio.client.update_trace(first, tags=["kept after all"])
    assert exported(tag="kept after all") == {first}
    spec = {"method": "pesft", "base_checkpoint": "nano-base", "output_name": "none"}
    data = {"source": "traces", "verdict": "right"}
    job = studio.post("/v1/jobs", spec | {"data": data, "hyperparameters": {"steps": 1}})
    assert job.status_code == 202, job.text
    assert not members_of & set(job.json()["spec"]["data"]["trace_ids"])
    studio.post(f"/v1/jobs/{job.json()['id']}/cancel", {})


def test_idempotency_key_returns_the_same_interventions(studio: Studio) -> None:
    trace = studio.asked(3, **GREEDY)
    first = studio.client.intervene(trace["id"], idempotency_key="why")
    again = studio.client.intervene(trace["id"], idempotency_key="why")
    assert again == first
    assert [group["id"] for group in studio.client.groups(limit=2)["data"]].count(first["id"]) == 1


def test_running_and_answerless_traces_are_409(studio: Studio) -> None:
    with studio.gate.after(12):
        trace = studio.ask(3)
        studio.until(trace["id"], "step.started")
        is_problem(studio.post(f"/v1/traces/{trace['id']}/interventions", {}), 409, "trace_live")
        is_problem(studio.post(f"/v1/traces/{trace['id']}/reliance", {}), 409, "no_answer")
        studio.client.cancel(trace["id"])
    stopped = studio.client.trace(trace["id"])
    assert (stopped["status"], stopped["answer"]) == ("cancelled", None)
    is_problem(studio.post(f"/v1/traces/{trace['id']}/reliance", {}), 409, "no_answer")
    short = studio.asked(3, sampling={"max_new_tokens": 5})
    assert short["answer"] is None
    is_problem(studio.post(f"/v1/traces/{short['id']}/reliance", {}), 409, "no_answer")
    is_problem(studio.post(f"/v1/traces/{short['id']}/attention", {}), 409, "no_answer")


@pytest.mark.parametrize(
    ("call", "body", "code"),
    [
        ("interventions", {"steps": [60]}, "no_such_step"),
        ("interventions", {"steps": list(range(1, 70))}, "no_such_step"),
        ("interventions", {"steps": []}, "invalid"),
        ("interventions", {"steps": [0]}, "invalid"),
        ("interventions", {"steps": "none"}, "invalid"),
        ("interventions", {"with": ["swap"]}, "invalid"),
        ("interventions", {"with": []}, "invalid"),
        ("interventions", {"what": 1}, "invalid"),
        ("attention", {"from": {"step": 99}}, "no_such_step"),
        ("attention", {"from": "question"}, "invalid"),
        ("attention", {"from": {"step": 0}}, "invalid"),
    ],
)
def test_impossible_places_are_422(studio: Studio, call: str, body: dict[str, Any], code: str) -> None:
    trace = studio.asked(3, **GREEDY)
    is_problem(studio.post(f"/v1/traces/{trace['id']}/{call}", body), 422, code)


def test_unknown_traces_are_404(studio: Studio) -> None:
    for call in ("reliance", "attention", "interventions"):
        is_problem(studio.post(f"/v1/traces/tr_none/{call}", {}), 404, "trace_not_found")


def test_weights_that_are_gone_are_409(studio: Studio) -> None:
    shutil.copytree(SHIPPED / "nano-omni-r1", studio.home / "checkpoints" / "passing")
    trace = studio.asked(3, checkpoint="passing", **GREEDY)
    studio.client.reliance(trace["id"])
    studio.restart()
    shutil.rmtree(studio.home / "checkpoints" / "passing")
    for call in ("reliance", "attention", "interventions"):
        is_problem(studio.post(f"/v1/traces/{trace['id']}/{call}", {}), 409, "weights_gone")
    with pytest.raises(Conflict):
        studio.client.reliance(trace["id"])


async def test_more_members_than_allowed_are_422(server: Server, engine: FakeGeneration) -> None:
    kinds = ["previous", "blank", "question", "other", "reference", "none"]
    steps = MAX_MEMBERS // len(kinds) + 1
    engine.script = lambda _request: [
        *(item for step in range(1, steps + 1) for item in step_items(step, f"Step {step}.", png(box=step))),
        *answer_items("red"),
    ]
    trace = await server.create()
    assert len((await server.finished(trace["id"]))["steps"]) == steps
    path = f"/v1/traces/{trace['id']}/interventions"
    is_problem(await server.client.post(path, json={"with": kinds}), 422, "invalid", "body.steps")
    few = await server.client.post(path, json={"with": kinds, "steps": list(range(1, steps))})
    assert few.status_code == 202
    assert len(few.json()["effects"]) + len(few.json()["skipped"]) == len(kinds) * (steps - 1)


async def test_error_of_a_union_names_every_possibility(server: Server) -> None:
    trace = await server.finished((await server.create())["id"])
    answer = await server.client.post(f"/v1/traces/{trace['id']}/interventions", json={"steps": "some"})
    problem = is_problem(answer, 422, "invalid", "body.steps")
    assert problem["detail"] == "body.steps: Input should be 'all' or a valid list"


def test_deleting_a_running_intervention_ends_it(studio: Studio) -> None:
    trace = three_images(studio)
    with studio.gate.after(20):
        group = studio.client.intervene(trace["id"], ["previous", "blank"])
        studio.reached(*group["trace_ids"][:1])
        assert {effect["changed"] for effect in group["effects"]} == {None}
        studio.client.delete_group(group["id"])
    is_problem(studio.http.get(f"/v1/groups/{group['id']}"), 404, "group_not_found")
    assert studio.client.trace(trace["id"]) == trace
