"""`omni-r1 branch`: another continuation of a trace on a running server, over HTTP only."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from app.cli.ask import given_sampling, given_verify, read_image
from app.cli.follow import follow_all
from app.cli.terminal import EXIT_BAD_INPUT, CommandError, message_of
from app.client import BadInput, Client
from app.client.types import Edit, Picture

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
