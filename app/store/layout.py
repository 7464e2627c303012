"""Which files belong to the folders of a home, by their path in the folder; `send` brings them into a bucket."""

from __future__ import annotations

from pathlib import Path

from app.store.bucket import Bucket
from app.store.trees import delete_tree, everything, upload_tree
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


def send(bucket: Bucket, home: Path, path: str, *, drop: bool) -> None:
    """Upload the file or folder (which ends with `/`) at `path` in the home, or delete it from the bucket; blocking.

    Raises StoreError, FileNotFoundError if it is missing, Changed.
    """
    key, is_folder = path.rstrip("/"), path.endswith("/")
    is_job = (home / key).parent == home / "jobs"
    if not is_folder:
        if drop:
            bucket.delete([key])
        else:
            bucket.upload(home / key, key)
    elif drop:
        delete_tree(bucket, key, of_job_alone if is_job else everything)
    else:
        upload_tree(bucket, home / key, key, of_job if is_job else of_checkpoint)
