"""The worker's side of a pool of actors, with a driver process that has no Ray."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from tests.training.cluster.in_process import Adder, drive
from training.cluster import pool as module
from training.cluster.pool import ActorPool, PoolError
from training.cluster.pool_actor import PoolActor, Raised


class StopAsked(Exception):
    """The job is to stop."""


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ActorPool]]:
    """Makes pools of Adders, whose driver behaves by their number of actors."""
    monkeypatch.setattr(module, "drive", drive)
    monkeypatch.setattr(module, "POLL_S", 0.01)
    made: list[ActorPool] = []

    def pool(count: int, **more: Any) -> ActorPool:
        made.append(ActorPool(Adder, count, **more))
        return made[-1]

    yield pool
    for one in made:
        one.close()
        assert not one._driver.is_alive()


def bytes_of(*values: int) -> Any:
    return np.array(values, np.uint8)


def test_results_come_in_the_order_of_the_shares(make: Callable[..., ActorPool]) -> None:
    said: list[str] = []
    pool = make(2, say=said.append)
    pool.send([("a", bytes_of(1, 2))], fixed=True)
    pool.send([("b", bytes_of(10))])
    counts: list[int] = []
    assert pool.work([100, 200, 300], lambda done: counts.append(len(done))) == [113, 213, 313]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    assert said == ["a rollout actor is lost, and another one takes its place: its node died"]
    pool.send([("b", bytes_of(20))])
    assert pool.work([100]) == [123], "fixed weights stay"
    with pytest.raises(ValueError, match="no such prompt"):
        pool.work(["no such prompt"])


def test_dead_driver_fails_the_round_unless_the_job_is_to_stop(make: Callable[..., ActorPool]) -> None:
    def stop(_: Collection[int]) -> None:
        raise StopAsked

    with pytest.raises(PoolError) as caught:
        make(13).work([1])
    assert caught.value.code == "cluster_unreachable"
    with pytest.raises(StopAsked):
        make(13).work([1], stop)


def test_driver_says_why_it_gives_up(make: Callable[..., ActorPool]) -> None:
    with pytest.raises(PoolError) as caught:
        make(64).work([1])
    detail = "Ray at nowhere cannot be reached; the job resumes from its last saved state"
    assert (caught.value.code, caught.value.detail) == ("cluster_unreachable", detail)


def test_wait_for_room_is_noted_until_the_job_stops(make: Callable[..., ActorPool]) -> None:
    notes: list[Mapping[str, Any] | None] = []

    def stop(_: Collection[int]) -> None:
        if notes:
            raise StopAsked

    with pytest.raises(StopAsked):
        make(7, note=notes.append).work([1], stop)
    assert notes == [{"for": "cluster", "detail": "needs 1 CPU, 0 CPU free"}, None]


class Unpicklable(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def failing() -> Any:
    raise Unpicklable(1, 2)


def test_exception_that_cannot_travel_comes_as_its_text() -> None:
    value = pickle.loads(PoolActor(pickle.dumps(failing)).work(1, {}, {}, pickle.dumps(1)))
    assert isinstance(value, Raised)
    assert (type(value.error), str(value.error)) == (RuntimeError, "Unpicklable: 1 and 2")
