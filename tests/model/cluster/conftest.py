"""Two scripted replicas on two machines of the same kind."""

from __future__ import annotations

import pytest

from model.engine.hosted import Host
from tests.model.cluster.fake_replica import FakeReplica


@pytest.fixture
def two() -> tuple[FakeReplica, FakeReplica]:
    return FakeReplica(Host("a", "cpu")), FakeReplica(Host("b", "cpu"))
