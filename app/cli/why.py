"""`omni-r1 why`: how much a trace relies on its images, and what replacing them changes; over HTTP only."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from app.cli.terminal import EXIT_BAD_INPUT, EXIT_OK, CommandError, clean, remark, table, write
from app.client import Client
from app.client.types import Group
from app.client.types_why import Effect, Reliance


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
