"""`omni-r1 ask` and `task`: questions to a running server, over HTTP only."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import cast, get_args

from app.cli.follow import follow_all
from app.cli.terminal import EXIT_OK, clean, remark, write
from app.client import BadInput, Client
from app.client.types import ImageRef, Sampling, Task, Verify
from app.contract.words import Level


def ask(args: Namespace) -> int:
    """Uploads the image, asks the question, streams the text and saves the images. Returns the exit code."""
    data = sys.stdin.buffer.read() if args.image == "-" else read_image(args.image)
    with Client(args.url) as client:
        stored = client.upload_image(data, "picture" if args.image == "-" else Path(args.image).name)
        image: ImageRef = {"image_id": stored["image_id"], "fit": args.fit}
        return _run(client, args, args.question, image, sampling=given_sampling(args))


def task(args: Namespace) -> int:
    """Shows a task of the procedural world; saves it (--out) or lets the model answer it (--ask)."""
    slice_name, seed, level = args.slice, args.seed, args.level
    if args.task_id:
        slice_name, seed, level = _parse_task_id(args.task_id)
    with Client(args.url) as client:
        found = client.task(slice=slice_name, seed=seed, level=level, reveal=args.reveal)
        if args.ask:
            remark(f"{found['task_id']}: {found['question']}")
            return _run(client, args, found["question"], {"image_id": found["image_id"]}, task_id=found["task_id"])
        if args.json:
            write(json.dumps(found, ensure_ascii=False, indent=2) + "\n")
        else:
            _show_task(client, found)
        if args.out:
            _save_task(client, found, Path(args.out))
    return EXIT_OK


def _run(
    client: Client,
    args: Namespace,
    question: str,
    image: ImageRef,
    *,
    sampling: Sampling | None = None,
    task_id: str | None = None,
) -> int:
    trace = client.create_trace(
        question,
        [image],
        task_id=task_id,
        checkpoint=args.checkpoint,
        sampling=sampling,
        verify=given_verify(args),
        background=True,
        n=args.n,
    )
    return follow_all(client, args, [trace])


def given_sampling(args: Namespace) -> Sampling | None:
    """The sampling options that were given."""
    names = ("temperature", "top_p", "seed", "max_new_tokens", "max_images")
    given = {name: getattr(args, name, None) for name in names}
    return cast(Sampling, {name: value for name, value in given.items() if value is not None}) or None


def given_verify(args: Namespace) -> Verify | None:
    """The number of candidates that was given."""
    return None if args.candidates is None else {"candidates": args.candidates}


def read_image(path: str) -> bytes:
    """The bytes of an image file; BadInput if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        problem = {"code": "unreadable_picture", "detail": f"cannot read {path}: {error.strerror or error}"}
        raise BadInput(422, problem) from error


def _parse_task_id(task_id: str) -> tuple[str, int, str | None]:
    start, _, seed = task_id.rpartition("-")
    slice_name, _, level = start.partition("-")
    if not slice_name or not seed.isdecimal() or level not in ("", *get_args(Level)):
        detail = f"not a task id: {task_id} (example: natural-1000000123)"
        raise BadInput(422, {"code": "bad_task_id", "detail": detail})
    return slice_name, int(seed), level or None


def _show_task(client: Client, found: Task) -> None:
    write(f"{found['task_id']}  ({found['slice']}, {found['family']})\n{clean(found['question'])}\n")
    write(f"image: {client.base_url}{found['image']['url']}\n")
    for step in found.get("steps") or []:
        write(f"  {step['index']}  {clean(step['text']).strip()}  {step['action']}\n")
    answer = found.get("answer")
    if answer is not None:
        write(f"Answer: {clean(answer)}\n")


def _save_task(client: Client, found: Task, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "picture.png").write_bytes(client.fetch(found["image"]["url"]))
    for step in found.get("steps") or []:
        (folder / f"step-{step['index']}.png").write_bytes(client.fetch(step["image"]["url"]))
    (folder / "task.json").write_text(json.dumps(found, ensure_ascii=False, indent=2) + "\n", "utf-8")
    remark(f"saved in {folder}/")
