"""Connects this process to a Ray cluster as its driver. Imports Ray only then."""

from __future__ import annotations

import logging
import os
from typing import Any

from model.cluster.words import reach

# Ray's own settings, of a cluster of ours: no statistics to its makers, and actors as eager as the server.
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
ADDRESS = "RAY_ADDRESS"
ROOM_S = 5.0  # between looks for whether there is room for an actor that does not start
REACH_S = 10.0  # for something at the cluster's address to answer
ONE_TRY = ("RAY_gcs_server_port_wait_time_s", "1")  # to speak to the head there; Ray's default is 20, of 30 s each
OBJECT_STORE = 128 << 20  # bytes, of a cluster of our own: only images of questions pass through it


def connect(*, own_cpus: int) -> str:
    """Connect to the cluster of `RAY_ADDRESS`, or to a new one with `own_cpus`; returns its address.

    Call in the main thread: Ray's processes end with the thread that started them.

    Raises:
        OSError, ValueError: as :func:`model.cluster.words.reach`.
        Exception: Ray's own.
    """
    import ray

    _log_as_we_do()
    quiet: Any = {"log_to_driver": False, "configure_logging": False}
    address = os.environ.get(ADDRESS)
    if address:
        reach(address, REACH_S)
        os.environ.setdefault(*ONE_TRY)
        context: Any = ray.init(address=address, **quiet)
    else:
        own: Any = {"num_cpus": own_cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        context = ray.init(address="local", **own, **quiet)
    return str(context.address_info["address"])


def _log_as_we_do() -> None:
    """Give Ray's records to our log; its warnings, also of what is as it should be, at level debug only."""
    theirs, is_wanted = logging.getLogger("ray"), logging.getLogger("omni_r1").isEnabledFor(logging.DEBUG)
    theirs.handlers.clear()
    theirs.propagate = True
    theirs.setLevel(logging.INFO if is_wanted else logging.ERROR)
