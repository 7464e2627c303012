"""`omni-r1 ask`, `task`, `branch` and `why`: questions to a running server, over HTTP only."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from app.cli.follow import follow_all
from app.cli.terminal import EXIT_BAD_INPUT, EXIT_OK, CommandError, clean, message_of, remark, table, write
from app.client import BadInput, Client
from app.client.types import Edit, Group, ImageRef, Picture, Sampling, Task, Verify
from app.client.types_why import Effect, Reliance
from app.contract.words import Level

KNOWN_IMAGES = ("previous", "blank", "question", "reference")  # everything else is a file


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


def branch(args: Namespace) -> int:
    """Keeps the first steps of a trace, edited if requested, and follows what the model makes of them."""
    texts = list(_edits(args.text, "--text", "2=It is red.", args.after))
    images = list(_edits(args.image, "--image", "2=blank", args.after))
    with Client(args.url) as client:
        edits: dict[int, Edit] = {}
        for step, text in texts:
            edits.setdefault(step, {"step": step})["text"] = text
        for step, image in images:
            edits.setdefault(step, {"step": step})["image"] = _picture(client, image)
        try:
            traces = client.branch(
                args.trace,
                args.after,
                edits=[edits[step] for step in sorted(edits)],
                then_text=args.then,
                then="answer" if args.answer else None,
                n=args.n,
                checkpoint=args.checkpoint,
                mode="auto",
                sampling=given_sampling(args),
                verify=given_verify(args),
                background=True,
            )
        except BadInput as error:
            raise CommandError(message_of(error, sorted(edits)), EXIT_BAD_INPUT) from None
        return follow_all(client, args, traces)


def _edits(given: Sequence[str], option: str, example: str, after: int) -> Iterator[tuple[int, str]]:
    """The steps and values of an option; each step once, and only kept ones."""
    steps = set()
    for one in given:
        number, equals, value = one.partition("=")
        if not equals or not number.isdecimal() or not int(number) or (not value and option == "--image"):
            what = option.removeprefix("--").upper()
            raise CommandError(f"{option} expects STEP={what}, e.g. {example}, not {one!r}", EXIT_BAD_INPUT)
        step = int(number)
        if step > after:
            kept = f"keeps only steps 1 to {after}" if after else "keeps no steps"
            raise CommandError(f"{option} is for step {step}, but --after {after} {kept}", EXIT_BAD_INPUT)
        if step in steps:
            raise CommandError(f"{option} is given twice for step {step}", EXIT_BAD_INPUT)
        steps.add(step)
        yield step, value


def _picture(client: Client, image: str) -> Picture:
    if image in KNOWN_IMAGES:
        return cast(Picture, {"use": image})
    return {"image_id": client.upload_image(read_image(image), Path(image).name)["image_id"]}


def why(args: Namespace) -> int:
    """Prints the reliance on each image and, if replacements are requested, what each of them changed."""
    if args.steps and not args.with_:
        raise CommandError("--steps needs --with: it names the images to replace", EXIT_BAD_INPUT)
    with Client(args.url) as client:
        reliance = client.reliance(args.trace)
        group: Group | None = None
        if args.with_:
            started = client.intervene(args.trace, args.with_, steps=args.steps or "all")
            for _ in client.group_events(started["id"]):
                pass
            group = client.group(started["id"])
    if args.json:
        document: dict[str, Any] = {"reliance": reliance} | ({"interventions": group} if group is not None else {})
        write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        return EXIT_OK
    write(_reliance(reliance))
    if group is not None:
        write("\n" + _effects(group))
        for skipped in group.get("skipped", []):
            remark(f"skipped {skipped['with']} at step {skipped['step']}: {skipped['reason']}")
    return EXIT_OK


def _reliance(found: Reliance) -> str:
    rows = [[_place(image["step"]), f"{image['reliance']:+.2f}"] for image in found["images"]]
    if not rows:
        return "The trace has no images.\n"
    return table(["image", "reliance (nats)"], rows)


def _effects(group: Group) -> str:
    effects = group.get("effects", [])
    if not effects:
        return "No image could be replaced.\n"
    rows = [[_place(one["step"]), one["with"], _answers(one), _later(one)] for one in effects]
    changed = sum(bool(one["changed"]) for one in effects)
    summary = f"{changed} of {len(rows)} replacements change the answer.\n"
    return table(["image", "replaced by", "answer", "later images"], rows) + summary


def _place(step: int) -> str:
    return f"step {step}" if step else "question"


def _answers(effect: Effect) -> str:
    before, after = (clean(answer) if answer is not None else "none" for answer in _pair(effect))
    if effect["changed"] is None:
        return f"{before} -> (did not complete)"
    return f"{before} -> {after}" if effect["changed"] else f"{before} (same)"


def _pair(effect: Effect) -> tuple[str | None, str | None]:
    return effect["answer_before"], effect["answer_after"]


def _later(effect: Effect) -> str:
    differ = effect["later_images_changed"]
    return "" if differ is None else "same" if not differ else f"{differ} differ" if differ > 1 else "1 differs"
