"""A pytest plugin (`-p tests.cluster.on_ray`, see `make test-ray`): real servers run on a Ray cluster of two nodes.

So do their engines and their jobs.
"""

from __future__ import annotations

import os

import pytest

from tests.app.traces import real
from tests.cluster import studio
from tests.cluster.nodes import Nodes
from tests.e2e import real_server

NODES = pytest.StashKey[Nodes]()
SETTINGS = {"OMNI_R1_ENGINE": "ray", "OMNI_R1_REPLICAS": "2", "OMNI_R1_JOBS": "ray"}
CPUS = 4  # of each node: a test may run several servers


def pytest_sessionstart(session: pytest.Session) -> None:
    nodes = session.config.stash[NODES] = Nodes(CPUS)
    os.environ.update(nodes.variables | SETTINGS)
    real_server.EVERYWHERE.update(SETTINGS)
    real.InProcess, real.Recorder, real.Gate = studio.engine, studio.Marked, studio.Ungated  # type: ignore
    real_server.has_read_only_root = lambda: False  # type: ignore[assignment]  # a driver writes to its node's /tmp/ray


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[NODES].close()
