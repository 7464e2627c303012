"""What jobs need of a cluster's nodes."""

from __future__ import annotations

from typing import Any

import pytest

from training.cluster.room import lacking_room, needs_of


@pytest.mark.parametrize(
    ("spec", "device", "has_gpus", "needs"),
    [
        ({"threads": 1}, "auto", False, {"CPU": 1}),
        ({"threads": 4}, "auto", True, {"CPU": 4, "GPU": 1}),
        ({"threads": 2, "num_gpus": 4}, "cuda", True, {"CPU": 8, "GPU": 4}),
        ({"threads": 2, "num_gpus": 4}, "cpu", True, {"CPU": 8}),
        ({}, "cuda", False, {"CPU": 1, "GPU": 1}),  # an autoscaler may add a node
    ],
)
def test_job_takes_a_device_for_each_rank(
    spec: dict[str, Any], device: str, has_gpus: bool, needs: dict[str, float]
) -> None:
    assert needs_of(spec, device, has_gpus=has_gpus) == needs


SMALL, BIG = {"CPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("needs", "free", "said"),
    [
        ({"CPU": 4}, {"CPU": 20, "GPU": 2}, None),
        ({"CPU": 4, "GPU": 1}, {"CPU": 20}, "needs 4 CPU and 1 GPU, 0 GPU free"),
        ({"CPU": 4, "GPU": 2}, {"CPU": 2, "GPU": 1}, "needs 4 CPU and 2 GPU, 2 CPU free and 1 GPU free"),
        ({"CPU": 4, "GPU": 4}, {"CPU": 20, "GPU": 2}, "needs 4 CPU and 4 GPU on one node, and no node has that many"),
        ({"CPU": 18}, {"CPU": 20}, "needs 18 CPU on one node, and no node has that many"),
    ],
)
def test_waiting_job_says_what_it_lacks(needs: dict[str, float], free: dict[str, float], said: str | None) -> None:
    assert lacking_room(needs, free, [SMALL, BIG]) == said
