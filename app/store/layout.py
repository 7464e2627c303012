"""Which files belong to the folders of a home, by their path in the folder."""

from __future__ import annotations

from training.jobs.disk import TRAIN


def of_job_alone(name: str) -> bool:
    """A job's checkpoints are folders of their own: they outlive it."""
    return not name.startswith("checkpoints/")


def of_job(name: str) -> bool:
    """With the training state that a resume needs, which lies in its last checkpoints."""
    return of_job_alone(name) or name.split("/")[2:3] == [TRAIN]


def of_checkpoint(name: str) -> bool:
    """What it takes to serve it; the worker deletes the training state of earlier ones."""
    return not name.startswith(f"{TRAIN}/")
