"""The real app on a scripted engine, for work on the pages: `python -m tests.fake_server --port 7861`.

Needs no weights. Every trace draws three images around the objects of its task, at a realistic speed; jobs are
simulated by `tests.play_worker`. A question containing `LONG` gets thirty images, enough for busy machines, one with
`NINE` nine.
`--home DIR` sets the state folder (default: a temporary one), `--no-page` omits Gradio, `--pace S` is the time between
two outputs.
"""

from __future__ import annotations

import argparse
import io
import shlex
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from app.common.settings import SettingsError, read_settings
from app.main import build_page, serve
from model.engine.messages import GenerationRequest
from model.images.view import model_view
from tests.fakes import FakeGeneration, Item, answer_items, emitted, step_items, write_paper_checkpoint

PLAY_WORKER = (sys.executable, "-m", "tests.play_worker")
LONG, NINE = "step after step", "some steps"
MOST_PARTS = 8  # per image: each takes the time of an output
STEPS = (
    ("I look for the things in the picture and mark the first one.", "mark"),
    ("I draw a box around the one that the question asks for.", "box"),
    ("I draw a line from one to the other.", "line"),
)


def script(request: GenerationRequest) -> list[Item]:
    """Steps on the question's own image."""
    with Image.open(io.BytesIO(request.images[0].png)) as opened:
        picture = model_view(opened, 64, request.images[0].fit)
    items: list[Item] = []
    times = 10 if LONG in request.question else 3 if NINE in request.question else 1
    for number, (text, kind) in enumerate(STEPS * times, 1):
        before = picture
        picture = _draw(picture.copy(), kind, request.sampling.seed + number)
        parts = min(request.partial_images, MOST_PARTS)
        items += _slowly_drawn(step_items(number, text, _png(picture)), before, picture, number, parts)
    return [*items, *answer_items(" red")]


def _slowly_drawn(items: list[Item], before: Image.Image, after: Image.Image, step: int, partials: int) -> list[Item]:
    """The step's items with partial images that fill row by row."""
    at = next(
        i for i, item in enumerate(items) if getattr(getattr(item, "event", None), "type", "") == "image.completed"
    )
    parts: list[Item] = []
    for index in range(partials):
        done = 64 * (index + 1) // (partials + 1)
        partial = before.copy().point(lambda value: value // 2 + 100)
        rows = after.height * done // 64
        partial.paste(after.crop((0, 0, after.width, rows)), (0, 0))
        parts.append(
            emitted("image.partial", step=step, index=index, codes_done=done, codes_total=64, png=_png(partial))
        )
    return [*items[:at], *parts, *items[at:]]


def _draw(picture: Image.Image, kind: str, seed: int) -> Image.Image:
    draw = ImageDraw.Draw(picture)
    x, y = 8 + seed * 7 % 32, 8 + seed * 11 % 32
    ink = (255, 0, 255)
    if kind == "mark":
        draw.ellipse((x, y, x + 6, y + 6), fill=ink)
    elif kind == "box":
        draw.rectangle((x, y, x + 18, y + 18), outline=ink, width=3)
    else:
        draw.line((x, y, 60 - x, 60 - y), fill=ink, width=3)
    return picture


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def main() -> int:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=7861)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--pace", type=float, default=0.05)
    parser.add_argument("--no-page", action="store_true")
    parser.add_argument("--worker", help="command line of another worker for jobs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = arguments.home or Path(scratch) / "home"
        checkpoint = home / "checkpoints" / "nano-omni-r1"
        if not checkpoint.is_dir():
            write_paper_checkpoint(checkpoint)
        try:
            settings = read_settings(home=home, port=arguments.port, checkpoint=str(checkpoint))
        except SettingsError as error:
            sys.stderr.write(f"fake_server: {error}\n")
            return 2
        engine = FakeGeneration(script, pace_s=arguments.pace)
        worker = tuple(shlex.split(arguments.worker)) if arguments.worker else PLAY_WORKER
        return serve(
            settings, generation=engine, build_ui=None if arguments.no_page else build_page, job_command=worker
        )


if __name__ == "__main__":
    sys.exit(main())
