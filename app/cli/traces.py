"""`omni-r1 branch` and `omni-r1 why`: what else a trace on a running server could be, over HTTP only."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from app.cli.ask import given_sampling, given_verify, read_image
from app.cli.follow import follow_all
from app.cli.terminal import EXIT_BAD_INPUT, EXIT_OK, CommandError, clean, message_of, remark, table, write
from app.client import BadInput, Client
from app.client.types import Edit, Group, Picture
from app.client.types_why import Effect, Reliance

KNOWN_IMAGES = ("previous", "blank", "question", "reference")  # everything else is a file


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
