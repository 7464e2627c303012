"""A pytest plugin (`-p tests.cluster.on_ray`, see `make test-ray`): real servers run on a Ray cluster of two nodes.

So do their engines and their jobs.
"""

from __future__ import annotations

import os

import psutil
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
    children = real_server.Server.children

    def with_workers(server: real_server.Server) -> list[psutil.Process]:
        """The server's processes, and its jobs' on the nodes: no other server has jobs at the time."""
        on_nodes = psutil.Process(nodes.pid).children(recursive=True)
        return [*children(server), *(one for one in on_nodes if real_server.runs(one, "training.jobs.worker"))]

    real_server.Server.children = with_workers  # type: ignore[method-assign]
    real_server.has_read_only_root = lambda: False  # type: ignore[assignment]  # a driver writes to its node's /tmp/ray


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[NODES].close()
