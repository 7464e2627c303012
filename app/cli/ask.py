"""`omni-r1 ask` and `task`: questions to a running server, over HTTP only."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import cast

from app.cli.terminal import EXIT_OK, clean, remark, write
from app.client import BadInput, Client, OmniError
from app.client.sse import Event
from app.client.types import ImageRef, Sampling, Task, Trace


def ask(args: Namespace) -> int:
    """Uploads the image, asks the question, streams the text and saves the images. Returns the exit code."""
    data = sys.stdin.buffer.read() if args.image == "-" else _read_image(args.image)
    with Client(args.url) as client:
        stored = client.upload_image(data, "picture" if args.image == "-" else Path(args.image).name)
        image: ImageRef = {"image_id": stored["image_id"], "fit": args.fit}
        return _run(client, args, args.question, image, sampling=_sampling(args))


def task(args: Namespace) -> int:
    """Shows a task of the procedural world; saves it (--out) or lets the model answer it (--ask)."""
    slice_name, seed = args.slice, args.seed
    if args.task_id:
        slice_name, seed = _parse_task_id(args.task_id)
    with Client(args.url) as client:
        found = client.task(slice=slice_name, seed=seed, reveal=args.reveal)
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
        question, [image], task_id=task_id, checkpoint=args.checkpoint, sampling=sampling, background=True
    )
    trace_id = trace["id"]
    printer = _Printer(client, Path(args.out or f"trace-{trace_id}"), quiet=args.quiet or args.json)
    try:
        for event in client.events(trace_id):
            printer.show(event)
    except KeyboardInterrupt:
        with suppress(OmniError):
            client.cancel(trace_id)
        raise
    finally:
        printer.end_line()
    final = client.trace(trace_id)
    printer.folder.mkdir(parents=True, exist_ok=True)
    (printer.folder / "trace.json").write_text(json.dumps(final, ensure_ascii=False, indent=2) + "\n", "utf-8")
    if args.json:
        write(json.dumps(final, ensure_ascii=False, indent=2) + "\n")
    return _conclude(final, printer.folder, quiet=args.quiet)


def _conclude(trace: Trace, folder: Path, *, quiet: bool) -> int:
    status = trace["status"]
    if status != "completed":
        error = trace.get("error") or {}
        raise TraceEnded(f"the trace is {status}: {error.get('detail') or 'no details'}")
    if quiet:
        write(clean(trace["answer"] or "") + "\n")
    verdict = trace.get("verdict")
    if verdict:
        drawings = f"{verdict['drawings_right']} of {verdict['drawings_total']} drawings right"
        remark(f"the answer is {verdict['answer']}, {drawings}")
    if trace["answer"] is None:
        remark("the model ended without an answer")
    total_ms = trace["timings"].get("total_ms")
    took = f" in {total_ms / 1000:.1f} s" if total_ms else ""
    remark(f"{trace['checkpoint']}, seed {trace['sampling'].get('seed')}{took}; images in {folder}/")
    return EXIT_OK


class TraceEnded(OmniError):
    """The trace ended without completing."""


class _Printer:
    """Prints a trace's events live: one line per step, the file of its image, the answer."""

    def __init__(self, client: Client, folder: Path, *, quiet: bool) -> None:
        self.folder = folder
        self._client = client
        self._quiet = quiet
        self._line_open = False
        self._fresh = False
        self._in_answer = False

    def show(self, event: Event) -> None:
        data = event.data
        if event.type == "trace.queued" and data.get("position"):
            remark(f"queued ({data['position']} ahead)")
        elif event.type == "step.started":
            self._start_line(f"{data['step']}  ")
        elif event.type == "text.delta":
            self._text(data["text"])
        elif event.type == "image.completed":
            self._save(f"step-{data['step']}.png", data["url"])
        elif event.type == "answer.delta":
            if not self._in_answer:
                self._start_line("Answer: ")
                self._in_answer = True
            self._text(data["text"])

    def end_line(self) -> None:
        if self._line_open:
            write("\n")
        self._line_open = False

    def _start_line(self, head: str) -> None:
        self.end_line()
        self._fresh = True
        if not self._quiet:
            write(head)
            self._line_open = True

    def _text(self, text: str) -> None:
        if self._quiet:
            return
        text = clean(text).replace("\n", " ")
        if self._fresh:
            text = text.lstrip()
        if text:
            self._fresh = False
            self._line_open = True
            write(text)

    def _save(self, name: str, url: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        path.write_bytes(self._client.fetch(url))
        if not self._quiet:
            write(f"{' ' if self._line_open else '   '}[{path}]")
            self._line_open = True


def _sampling(args: Namespace) -> Sampling | None:
    names = ("temperature", "top_p", "seed", "max_new_tokens", "max_images")
    given = {name: getattr(args, name) for name in names}
    return cast(Sampling, {name: value for name, value in given.items() if value is not None}) or None


def _read_image(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        problem = {"code": "unreadable_picture", "detail": f"cannot read {path}: {error.strerror or error}"}
        raise BadInput(422, problem) from error


def _parse_task_id(task_id: str) -> tuple[str, int]:
    slice_name, _, seed = task_id.rpartition("-")
    if not slice_name or not seed.isdecimal():
        detail = f"not a task id: {task_id} (example: natural-1000000123)"
        raise BadInput(422, {"code": "bad_task_id", "detail": detail})
    return slice_name, int(seed)


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
