"""Branches of traces on the real engine: what they keep, how they go on, their logs and their tree."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import pytest

from app.client import Conflict, NotFound
from app.client.types import Sampling
from model.checkpoint.shards import SHIPPED
from tests.app.conftest import is_problem, without_store
from tests.app.traces.real import MODEL, Studio, assert_whole, image_ids
from tests.tiny import make_drawing_checkpoint, make_tiny_checkpoint


@pytest.mark.parametrize(("seed", "slice_"), [(3, "operational"), (1, "diagrammatic"), (2, "structured")])
def test_branch_without_edit_is_its_parent_at_every_step(studio: Studio, seed: int, slice_: str) -> None:
    parent = studio.asked(seed, slice_)
    assert parent["steps"]
    count = len(parent["steps"])
    branches = [studio.client.branch(parent["id"], k)[0]["id"] for k in range(count + 1)]
    for k, branch_id in enumerate(branches):
        branch = studio.ended(branch_id)
        assert branch["status"] == "completed"
        assert branch["sampling"] == parent["sampling"]
        assert branch["parent"] == {
            "trace_id": parent["id"],
            "after_step": k,
            "edited_steps": [],
            "group_id": None,
        }
        studio.assert_same_steps(parent, branch, k)
        assert image_ids(branch)[:k] == image_ids(parent)[:k], "kept images are the parent's own"
        if not studio.assert_same(parent, branch):
            continue
        assert branch.get("verdict") == parent.get("verdict")
        before, after = parent["usage"], branch["usage"]
        assert before is not None
        assert after is not None
        assert after["prompt_tokens"] == before["prompt_tokens"]
        assert after["kept_tokens"] + after["completion_tokens"] == before["completion_tokens"]
        assert (after["kept_tokens"] > 0) == (k > 0)
        kept = sum(image is not None for image in image_ids(parent)[:k])
        assert after["images"] == before["images"] - kept


def test_branch_of_a_branch_of_a_branch_is_still_the_first_trace(studio: Studio) -> None:
    first = studio.asked(3)
    assert len(first["steps"]) >= 2
    second = studio.branched(first["id"], 1)
    third = studio.branched(second["id"], 2)
    fourth = studio.branched(third["id"], 1)  # parts before the step at which its parent did
    for trace in (second, third, fourth):
        studio.assert_same(first, trace)
    nodes = studio.client.tree(third["id"])["nodes"]
    assert {node["id"]: node["parent_id"] for node in nodes} == {
        first["id"]: None,
        second["id"]: first["id"],
        third["id"]: second["id"],
        fourth["id"]: third["id"],
    }
    assert [studio.client.tree(trace["id"]) for trace in (first, second, fourth)] == [
        studio.client.tree(third["id"])
    ] * 3


def test_another_seed_goes_another_way(studio: Studio) -> None:
    parent = studio.asked(3)
    others = [studio.branched(parent["id"], 0, sampling={"temperature": 2.0, "seed": seed}) for seed in range(3)]
    assert [other["sampling"]["seed"] for other in others] == [0, 1, 2]
    assert any([s["text"] for s in other["steps"]] != [s["text"] for s in parent["steps"]] for other in others)


def test_log_of_a_branch_is_whole_and_replays_the_same_bytes(studio: Studio) -> None:
    parent = studio.asked(3)
    branch = studio.branched(parent["id"], 1)
    whole = studio.log(branch["id"])
    events = studio.events(branch["id"])
    assert_whole(events, "trace.completed")
    types = [event.type for event in events]
    assert types.index("step.kept") == types.index("trace.started") + 1
    assert types.count("step.kept") == 1
    kept = events[types.index("step.kept")].data
    first = parent["steps"][0]
    assert (kept["step"], kept["text"], kept["edited"]) == (1, first["text"], False)
    known = dict(first.get("image") or {})
    known.pop("right")  # the verdict comes at the end
    assert kept["image"] == known
    assert "reencoded" not in kept
    later = [event.data["step"] for event in events if event.type in ("step.started", "image.started")]
    assert all(step > 1 for step in later)
    for after in range(len(events) + 1):
        assert studio.log(branch["id"], after) == b"".join(event.raw for event in events[after:])
    tokens = studio.client.tokens(branch["id"])
    studio.restart()
    assert studio.log(branch["id"]) == whole
    assert studio.client.trace(branch["id"]) == branch
    assert studio.client.tokens(branch["id"]) == tokens


def test_tokens_of_a_branch_say_what_was_given(studio: Studio) -> None:
    parent = studio.asked(3)
    branch = studio.branched(parent["id"], 1)
    drawn, given = studio.client.tokens(parent["id"]), studio.client.tokens(branch["id"])
    assert [token["text"] for token in given["steps"][0]["tokens"]] == [t["text"] for t in drawn["steps"][0]["tokens"]]
    assert all(token["logprob"] is None for token in given["steps"][0]["tokens"])
    assert all(token["logprob"] is not None and token["logprob"] <= 0 for token in drawn["steps"][0]["tokens"])
    image = drawn["steps"][0]["image"]
    assert image is not None
    assert len({len(row) for row in image}) == 1
    assert [[value for value in row if value is None] for row in image] == [[] for _ in image]
    assert all(value is None for row in given["steps"][0]["image"] or [] for value in row)
    assert all(token["logprob"] is not None for token in given["answer"])


def test_existing_branches_outlive_their_parent(studio: Studio) -> None:
    root = studio.asked(3)
    parent = studio.branched(root["id"], 1)
    branch = studio.branched(parent["id"], 1)
    log = studio.log(branch["id"])
    studio.client.delete(parent["id"])
    with pytest.raises(NotFound):
        studio.client.branch(parent["id"], 0)
    with pytest.raises(NotFound):
        studio.client.tree(parent["id"])
    assert studio.log(branch["id"]) == log
    assert studio.client.trace(branch["id"]) == branch
    for image_id in image_ids(branch):
        assert image_id is None or studio.client.image(image_id).startswith(b"\x89PNG")
    status = {node["id"]: node["status"] for node in studio.client.tree(branch["id"])["nodes"]}
    assert status == {root["id"]: "completed", parent["id"]: "deleted", branch["id"]: "completed"}
    studio.assert_same(branch, studio.branched(branch["id"], 1))
    studio.client.delete(root["id"])
    tree = studio.client.tree(branch["id"])
    assert tree["root"] == root["id"]
    assert {node["id"] for node in tree["nodes"] if node["status"] == "deleted"} == {root["id"], parent["id"]}


def test_sixty_four_branches_of_one_trace(studio: Studio) -> None:
    parent = studio.asked(3)
    last = len(parent["steps"])
    ids = [studio.client.branch(parent["id"], last)[0]["id"] for _ in range(64)]
    ends = [studio.ended(id_) for id_ in ids]
    assert [end["status"] for end in ends] == ["completed"] * 64
    for end in ends:
        studio.assert_same(parent, end)
    nodes = studio.client.tree(parent["id"])["nodes"]
    assert [node["id"] for node in nodes] == [parent["id"], *ids]
    page = studio.client.traces(parent=parent["id"], limit=100)
    assert [trace["id"] for trace in page["data"]] == ids[::-1]


def test_running_or_waiting_parent_is_409_and_its_end_is_awaited(studio: Studio) -> None:
    with studio.gate.after(12):
        parent = studio.ask(3)
        studio.until(parent["id"], "trace.started")
        is_problem(studio.refused(parent["id"], after_step=0), 409, "trace_live")
        with pytest.raises(Conflict, match="running"):
            studio.client.branch(parent["id"], 0)
        studio.gate.open(0)
        waiting = studio.ask(4)
        is_problem(studio.refused(waiting["id"], after_step=0), 409, "trace_live")
    studio.ended(waiting["id"])
    studio.assert_same(studio.ended(parent["id"]), studio.branched(parent["id"], 1))


def test_paused_parent_can_be_branched_and_still_continues(studio: Studio) -> None:
    whole = studio.asked(3)
    parent = studio.paused(studio.ask(3, mode="step")["id"])
    assert len(parent["steps"]) == 1
    is_problem(studio.refused(parent["id"], after_step=2), 422, "no_such_step", "body.after_step")
    studio.assert_same(whole, studio.branched(parent["id"], 1, mode="auto"))
    [slow] = studio.client.branch(parent["id"], 1)
    assert slow["mode"] == "step", "absent fields are the parent's"
    slowly = studio.paused(slow["id"])
    assert len(slowly["steps"]) == 2, "a kept step does not pause"
    studio.client.continue_(slow["id"], "auto")
    studio.client.continue_(parent["id"], "auto")
    for trace_id in (slow["id"], parent["id"]):
        end = studio.ended(trace_id)
        assert (end["status"], end["answer"]) == ("completed", whole["answer"])
        studio.assert_same_steps(whole, end)


@pytest.mark.parametrize("how", ["cancelled", "interrupted"])
def test_unfinished_parent_keeps_its_complete_steps(studio: Studio, how: str) -> None:
    whole = studio.asked(3)
    steps_of_one = len(studio.recorder.sequences[whole["id"]].response) // 2 + 20  # somewhere in the second step
    with studio.gate.after(steps_of_one):
        parent = studio.ask(3)
        studio.until(parent["id"], "step.completed")
        if how == "cancelled":
            studio.client.cancel(parent["id"])
        else:
            studio.restart()
    ended = studio.client.trace(parent["id"])
    assert ended["status"] == how
    is_problem(studio.refused(parent["id"], after_step=2), 422, "no_such_step", "body.after_step")
    studio.assert_same_steps(whole, ended, 1)
    branch = studio.branched(parent["id"], 1)
    assert branch["answer"] == whole["answer"]
    studio.assert_same_steps(whole, branch)
    assert len(studio.client.tokens(parent["id"])["steps"]) == 1
    assert studio.client.tokens(parent["id"])["answer"] == []


@pytest.mark.parametrize("parts", [range(9), range(1, 9), [1], [2]], ids=["all", "steps", "first", "second"])
def test_trace_of_an_earlier_version_is_branched_by_encoding_again(studio: Studio, parts: Sequence[int]) -> None:
    parent = studio.asked(3)
    studio.forget_tokens(parent["id"], parts)
    branch = studio.branched(parent["id"], 1)
    kept = next(event for event in studio.events(branch["id"]) if event.type == "step.kept")
    assert kept.data["reencoded"] is True
    assert kept.data["edited"] is False
    assert kept.data["image"]["width"] == 64
    assert kept.data["text"] == parent["steps"][0]["text"]
    path = f"/v1/traces/{parent['id']}"
    is_problem(studio.http.get(f"{path}/tokens"), 409, "no_tokens")
    is_problem(studio.post(f"{path}/alternatives", {"step": 1, "token": 0}), 409, "no_tokens")
    token = {"step": 2, "token": 0, "id": 5}
    is_problem(studio.refused(parent["id"], after_step=1, then_token=token), 409, "no_tokens")
    assert studio.client.tokens(branch["id"])["steps"][0]["tokens"]


def test_weights_that_are_gone_need_another_checkpoint(studio: Studio) -> None:
    copy = studio.home / "checkpoints" / "copy"
    shutil.copytree(SHIPPED / MODEL, copy)
    parent = studio.asked(3, checkpoint="copy")
    studio.assert_same(parent, studio.branched(parent["id"], 1))
    shutil.rmtree(copy)
    answer = studio.refused(parent["id"], after_step=1)
    is_problem(answer, 409, "weights_gone")
    alternatives = studio.post(f"/v1/traces/{parent['id']}/alternatives", {"step": 1, "token": 0})
    is_problem(alternatives, 409, "weights_gone")
    branch = studio.branched(parent["id"], 1, checkpoint=MODEL)
    assert branch["checkpoint"] == MODEL
    assert branch["steps"][0]["text"] == parent["steps"][0]["text"]
    unknown = studio.refused(parent["id"], after_step=1, checkpoint="none")
    is_problem(unknown, 422, "unknown_checkpoint")


def test_checkpoint_with_other_images_is_refused_if_images_are_kept(studio: Studio) -> None:
    make_drawing_checkpoint(studio.home / "checkpoints" / "tiny")
    parent = studio.asked(3)
    answer = studio.refused(parent["id"], after_step=1, checkpoint="tiny")
    is_problem(answer, 422, "incompatible_checkpoint", "body.checkpoint")
    assert studio.branched(parent["id"], 0, checkpoint="tiny")["checkpoint"] == "tiny"


def test_checkpoint_that_cannot_draw_is_refused_if_images_are_kept(studio: Studio) -> None:
    folders = studio.home / "checkpoints"
    make_drawing_checkpoint(folders / "drawing")
    make_tiny_checkpoint(folders / "mute", decoder=False)
    warm: Sampling = {"temperature": 1.0, "seed": 1, "max_new_tokens": 60}
    parent = studio.asked(3, task_id=None, checkpoint="drawing", sampling=warm)
    assert image_ids(parent)[0] is not None
    answer = studio.refused(parent["id"], after_step=1, checkpoint="mute")
    is_problem(answer, 422, "incompatible_checkpoint", "body.checkpoint")
    mute = studio.branched(parent["id"], 0, checkpoint="mute", then_text="I think")
    text = {"step": 1, "text": "I think again"}
    if len(mute["steps"]) > 1:
        assert studio.branched(mute["id"], 1, edits=[text])["steps"][0]["text"] == text["text"]  # type: ignore[list-item]
        image = {"step": 1, "image": {"use": "blank"}}
        is_problem(studio.refused(mute["id"], after_step=1, edits=[image]), 422, "incompatible_checkpoint")


@without_store
def test_kept_image_without_its_file_is_a_clean_error(studio: Studio) -> None:
    parent = studio.asked(5, "diagrammatic")
    image_id = image_ids(parent)[0]
    assert image_id is not None
    file = studio.server.services.images.path(image_id)
    data = file.read_bytes()
    file.unlink()
    is_problem(studio.refused(parent["id"], after_step=1), 404, "image_not_found")
    file.write_bytes(data)
    studio.assert_same(parent, studio.branched(parent["id"], 1))


def test_streaming_post_of_a_branch_is_its_log(studio: Studio) -> None:
    parent = studio.asked(3)
    answer = studio.post(f"/v1/traces/{parent['id']}/branches", {"after_step": 1}, Accept="text/event-stream")
    assert answer.status_code == 201
    branch_id = answer.headers["location"].rsplit("/", 1)[1]
    assert answer.content == studio.log(branch_id)
    assert studio.client.trace(branch_id)["status"] == "completed"


def test_same_key_gives_the_same_branch(studio: Studio) -> None:
    parent = studio.asked(3)
    path, key = f"/v1/traces/{parent['id']}/branches", {"Idempotency-Key": "k1"}
    first, again = (studio.post(path, {"after_step": 1}, **key) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"] == f"/v1/traces/{first.json()['data'][0]['id']}"
    is_problem(studio.post(path, {"after_step": 0}, **key), 422, "idempotency_mismatch")
    assert len(studio.client.traces(parent=parent["id"])["data"]) == 1
    other = studio.asked(4)
    answer = studio.post(f"/v1/traces/{other['id']}/branches", {"after_step": 1}, **key)
    assert answer.json()["data"][0]["parent"]["trace_id"] == other["id"], "keys belong to one parent"
