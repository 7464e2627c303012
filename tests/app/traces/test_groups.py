"""Groups of samples and branches on the real engine: their log, tally, limits, and ends."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from app.client import NotFound
from app.client.types import Group, Trace
from app.contract.schemas import MAX_SEED
from tests.app.conftest import Sse, is_problem, parse_sse
from tests.app.traces.real import FIRST_TASK, SLOTS, Studio, assert_whole

WARM = {"temperature": 1.0, "seed": 5}


def group_of(studio: Studio, n: int, **more: Any) -> Group:
    """A new group of samples."""
    group_id = studio.ask(3, n=n, **{"sampling": WARM, **more})["group_id"]
    assert group_id is not None
    return studio.client.group(group_id)


@contextlib.contextmanager
def held_group(studio: Studio, n: int) -> Iterator[Group]:
    """A new group of which the first members write their first step; held there until the end of the block."""
    with studio.gate.after(0):
        group = group_of(studio, n)
        studio.reached(*group["trace_ids"])
        studio.gate.open(12)
        studio.until(group["trace_ids"][0], "text.delta")
        yield group


def finished(studio: Studio, group_id: str) -> Group:
    """The group once all members have ended."""
    for _ in studio.client.group_events(group_id):
        pass
    group = studio.client.group(group_id)
    assert group["status"] == "completed"
    return group


def members(studio: Studio, group: Group) -> list[Trace]:
    return [studio.client.trace(trace_id) for trace_id in group["trace_ids"]]


def assert_group_log(studio: Studio, group_id: str) -> list[Sse]:
    """Assert that the group's log is whole and has exactly the events of its members, in their order."""
    log = studio.events(group_id)
    assert_whole(log, "group.completed")
    for trace_id in studio.client.group(group_id)["trace_ids"]:
        own = studio.events(trace_id)
        assert_whole(own, ("trace.completed", "trace.failed", "trace.cancelled"))
        mine = [(event.type, event.data) for event in log if event.data.get("trace_id") == trace_id]
        assert mine == [(event.type, {"trace_id": trace_id} | event.data) for event in own]
    assert {event.data.get("trace_id") for event in log[:-1]} == set(studio.client.group(group_id)["trace_ids"])
    return log


def test_samples_have_successive_seeds_and_are_the_single_traces(studio: Studio) -> None:
    group = finished(studio, group_of(studio, 5)["id"])
    samples = members(studio, group)
    assert [sample["sampling"]["seed"] for sample in samples] == [5, 6, 7, 8, 9]
    assert {sample["group_id"] for sample in samples} == {group["id"]}
    assert group["kind"] == "samples"
    singles = [studio.ask(3, sampling={"temperature": 1.0, "seed": 5 + i})["id"] for i in range(5)]
    for sample, single in zip(samples, singles, strict=True):
        studio.assert_same(sample, studio.ended(single))
    listed = studio.client.traces(group=group["id"])["data"]
    assert [trace["id"] for trace in listed] == group["trace_ids"][::-1]


def test_seeds_wrap_around(studio: Studio) -> None:
    group = group_of(studio, 3, sampling={"temperature": 1.0, "seed": MAX_SEED})
    assert [trace["sampling"]["seed"] for trace in members(studio, group)] == [MAX_SEED, 0, 1]
    finished(studio, group["id"])


def test_branches_of_a_group_are_the_single_branches(studio: Studio) -> None:
    parent = studio.asked(3)
    branches = studio.client.branch(parent["id"], 1, n=3, sampling={"seed": 40, "temperature": 1.5})
    group_id = branches[0]["group_id"]
    assert group_id is not None
    group = finished(studio, group_id)
    assert group["kind"] == "branches"
    assert group["trace_ids"] == [branch["id"] for branch in branches]
    for index, branch in enumerate(members(studio, group)):
        single = studio.branched(parent["id"], 1, sampling={"seed": 40 + index, "temperature": 1.5})
        studio.assert_same(branch, single)
    assert_group_log(studio, group_id)
    nodes = {node["id"]: node for node in studio.client.tree(parent["id"])["nodes"]}
    assert [nodes[branch["id"]]["after_step"] for branch in branches] == [1, 1, 1]
    again = studio.branched(group["trace_ids"][0], 0)
    assert again["parent"] is not None
    assert again["parent"]["group_id"] == group_id


def test_tally_counts_the_answers(studio: Studio) -> None:
    group = finished(studio, group_of(studio, 8, sampling={"temperature": 3.0, "seed": 1})["id"])
    answers = Counter(trace["answer"] for trace in members(studio, group))
    assert {entry["answer"]: entry["count"] for entry in group["tally"]} == answers
    counts = [entry["count"] for entry in group["tally"]]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == 8
    for entry in group["tally"]:
        assert entry["share"] == pytest.approx(entry["count"] / 8, abs=1e-4)
        assert entry["mean_logprob"] is None or entry["mean_logprob"] <= 0
        verdicts = {t["verdict"]["answer"] for t in members(studio, group) if t["answer"] == entry["answer"]}  # type: ignore[index]
        assert {entry.get("verdict")} == verdicts
    assert group["agreement"] == max(entry["share"] for entry in group["tally"] if entry["answer"] is not None)
    last = studio.events(group["id"])[-1]
    assert last.data == {"status": "completed", "tally": group["tally"], "agreement": group["agreement"]}


def test_log_of_a_group_is_whole_and_replays_the_same_bytes(studio: Studio) -> None:
    group = group_of(studio, 4)
    live: list[Any] = list(studio.client.group_events(group["id"]))
    log = assert_group_log(studio, group["id"])
    assert [event.type for event in log[:4]] == ["trace.queued"] * 4
    assert [event.raw for event in live] == [event.raw.split(b"data: ", 1)[1].decode().strip() for event in log]
    for after in range(0, len(log) + 1, 7):
        assert studio.log(group["id"], after) == b"".join(event.raw for event in log[after:])
    assert studio.log(group["id"], len(log)) == b""
    ended = studio.client.group(group["id"])
    studio.restart()
    assert studio.events(group["id"]) == log
    assert studio.client.group(group["id"]) == ended


def test_members_leave_two_slots_to_others(studio: Studio) -> None:
    studio.gate.most_running = 0
    with held_group(studio, SLOTS + 2) as group:
        for trace_id in group["trace_ids"][: SLOTS - 2]:
            studio.until(trace_id, "trace.started")
        other = studio.ask(4)
        studio.reached(other["id"])
        studio.gate.open(2)
        studio.until(other["id"], "trace.started")
        assert studio.gate.most_running == SLOTS - 1, "all slots of the group, and the other trace"
        waiting = [t["status"] for t in members(studio, studio.client.group(group["id"]))]
        assert Counter(waiting) == {"running": SLOTS - 2, "queued": 4}
        assert studio.client.group(group["id"])["status"] == "running"
    finished(studio, group["id"])
    assert studio.ended(other["id"])["status"] == "completed"


@pytest.mark.parametrize("n", [0, 17, 1.5, "2", True])
def test_number_of_samples_is_checked(studio: Studio, n: Any) -> None:
    before = studio.client.groups()
    task = studio.client.task(slice="natural", seed=FIRST_TASK)
    body = {"question": task["question"], "images": [{"image_id": task["image_id"]}], "n": n}
    is_problem(studio.post("/v1/traces", body), 422, "invalid", "body.n")
    assert studio.client.groups() == before


def test_group_without_enough_places_is_429_and_stores_nothing(studio: Studio) -> None:
    parent = studio.asked(4)
    with studio.gate.after(0):
        groups = [group_of(studio, 16) for _ in range(3)] + [group_of(studio, 12)]
        before = studio.client.traces(limit=100), studio.client.groups()
        task = studio.client.task(slice="natural", seed=FIRST_TASK)
        body = {"question": task["question"], "images": [{"image_id": task["image_id"]}], "n": 5}
        answers = [
            studio.post("/v1/traces", body),
            studio.post(f"/v1/traces/{parent['id']}/branches", {"after_step": 1, "n": 5}),
        ]
        for answer in answers:
            queue = is_problem(answer, 429, "queue_full")["queue"]
            assert (queue["waiting"], queue["max"]) == (60, 64)
            assert answer.headers["retry-after"]
        assert (studio.client.traces(limit=100), studio.client.groups()) == before
        fits = studio.client.branch(parent["id"], 1, n=4)
        assert len(fits) == 4
        for group_id in [*(group["id"] for group in groups), fits[0]["group_id"]]:
            assert studio.client.cancel_group(group_id)["status"] == "completed"  # type: ignore[arg-type]
    assert studio.client.limits()["queue"]["waiting"] == 0


def test_cancelled_group_ends_once(studio: Studio) -> None:
    with held_group(studio, SLOTS) as group:
        ended = studio.client.cancel_group(group["id"])
    assert ended["status"] == "completed"
    assert {trace["status"] for trace in members(studio, ended)} == {"cancelled"}
    assert ended["agreement"] is None
    assert [entry["answer"] for entry in ended["tally"]] == [None]
    assert_group_log(studio, group["id"])
    assert studio.client.cancel_group(group["id"]) == ended


def test_group_deleted_while_it_runs_is_gone_with_its_members(studio: Studio) -> None:
    with held_group(studio, SLOTS) as group:
        read: list[Sse] = []
        reader = threading.Thread(target=lambda: read.extend(parse_sse(studio.log(group["id"]))))
        reader.start()
        studio.client.delete_group(group["id"])
        reader.join()
    with pytest.raises(NotFound):
        studio.client.group(group["id"])
    is_problem(studio.http.get(f"/v1/groups/{group['id']}/events"), 404, "group_not_found")
    for trace_id in group["trace_ids"]:
        with pytest.raises(NotFound):
            studio.client.trace(trace_id)
    assert [event.id for event in read] == list(range(1, len(read) + 1))
    assert studio.client.traces(group=group["id"])["data"] == []
    assert studio.asked(3)["status"] == "completed"


def test_member_deleted_from_a_group_leaves_the_others(studio: Studio) -> None:
    with held_group(studio, 3) as group:
        studio.client.delete(group["trace_ids"][0])
    ended = finished(studio, group["id"])
    assert sum(entry["count"] for entry in ended["tally"]) == 2
    log = studio.events(group["id"])
    assert_whole(log, "group.completed")
    ends = {event.data["trace_id"]: event.type for event in log if event.type in ("trace.completed", "trace.cancelled")}
    assert ends == dict(zip(group["trace_ids"], ["trace.cancelled", *["trace.completed"] * 2], strict=True))


def test_paused_group_goes_on_after_a_restart(studio: Studio) -> None:
    group = group_of(studio, 3, mode="step")
    for trace_id in group["trace_ids"]:
        studio.paused(trace_id)
    assert studio.client.group(group["id"])["status"] == "paused"
    studio.restart()
    assert studio.client.group(group["id"])["status"] == "paused"
    for trace_id in group["trace_ids"][:2]:
        studio.client.continue_(trace_id, "auto")
    studio.client.cancel(group["trace_ids"][2])
    ended = finished(studio, group["id"])
    assert [trace["status"] for trace in members(studio, ended)] == ["completed", "completed", "cancelled"]
    assert_group_log(studio, group["id"])


def test_stopped_server_ends_a_group_with_one_end(studio: Studio) -> None:
    with held_group(studio, SLOTS + 2) as group:
        early = studio.until(group["trace_ids"][0], "text.delta")
        studio.restart()
    ended = studio.client.group(group["id"])
    assert ended["status"] == "completed"
    assert {trace["status"] for trace in members(studio, ended)} == {"interrupted"}
    assert_group_log(studio, group["id"])
    assert list(studio.client.events(group["trace_ids"][0]))[: len(early)] == early
    branch = studio.branched(group["trace_ids"][0], 0)
    assert branch["answer"] is not None


def test_same_key_gives_the_same_group(studio: Studio) -> None:
    task = studio.client.task(slice="natural", seed=FIRST_TASK)
    images = [task["image_id"]]
    first, again = (studio.client.create_trace(task["question"], images, n=2, idempotency_key="g1") for _ in range(2))
    assert again == first
    group_id = first["group_id"]
    assert group_id is not None
    assert studio.client.groups(limit=1)["data"][0]["id"] == group_id
    assert len(studio.client.traces(group=group_id)["data"]) == 2
    parent = studio.asked(3)
    path, key = f"/v1/traces/{parent['id']}/branches", {"Idempotency-Key": "g2"}
    made, replayed = (studio.post(path, {"after_step": 1, "n": 3}, **key) for _ in range(2))
    assert replayed.json() == made.json()
    assert replayed.headers["idempotent-replayed"] == "true"
    assert len(studio.client.traces(parent=parent["id"])["data"]) == 3
    is_problem(studio.post(path, {"after_step": 1, "n": 2}, **key), 422, "idempotency_mismatch")
    for id_ in (group_id, made.json()["data"][0]["group_id"]):
        finished(studio, id_)


def test_streaming_post_of_a_group_is_its_log(studio: Studio) -> None:
    parent = studio.asked(3)
    body = {"after_step": 1, "n": 2}
    answer = studio.post(f"/v1/traces/{parent['id']}/branches", body, Accept="text/event-stream")
    assert answer.status_code == 201
    group_id = studio.client.groups(limit=1)["data"][0]["id"]
    assert answer.content == studio.log(group_id)
    assert_group_log(studio, group_id)


def test_groups_are_paged_newest_first(studio: Studio) -> None:
    made = [finished(studio, group_of(studio, 2)["id"]) for _ in range(3)]
    page = studio.client.groups(limit=2)
    assert page == {"data": [made[2], made[1]], "has_more": True}
    older = studio.client.groups(limit=1, after=made[1]["id"])
    assert older["data"] == [made[0]]
    is_problem(studio.http.get("/v1/groups", params={"after": "nonsense"}), 422, "invalid")
    is_problem(studio.http.get("/v1/groups/none"), 404, "group_not_found")
    is_problem(studio.post("/v1/groups/none/cancel", {}), 404, "group_not_found")
    is_problem(studio.http.delete("/v1/groups/none"), 404, "group_not_found")
