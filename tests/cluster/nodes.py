"""A Ray cluster of two nodes on this machine, in a process of its own: `python -m tests.cluster.nodes CPUS`.

It prints its address, adds a node for the line `add`, kills the newest one for `kill`, and ends with its stdin.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
STORE = 100 << 20  # bytes of each node's object store


class Nodes:
    """The cluster, from the test's side. `variables` lead a driver to it."""

    def __init__(self, cpus: int = 1) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.nodes", str(cpus)],
            cwd=ROOT,
            env=os.environ | QUIET,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.address = self._answer()
        self.variables = QUIET | {"RAY_ADDRESS": self.address}

    def order(self, word: str) -> None:
        """Add or kill a node; returns when that is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        assert self._answer() == word

    def close(self) -> None:
        """End all nodes."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("nodes: "):
                return line.removeprefix("nodes: ").strip()
        raise AssertionError("the cluster did not start")


def main(cpus: int) -> None:
    from ray.cluster_utils import Cluster

    sizes = {"num_cpus": cpus, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=sizes | {"include_dashboard": False})
    nodes = [cluster.add_node(**sizes)]
    sys.stdout.write(f"nodes: {cluster.address}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        if line.strip() == "add":
            nodes.append(cluster.add_node(**sizes))
        else:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        sys.stdout.write(f"nodes: {line}")
        sys.stdout.flush()
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
