"""Reads one image in a separate process, to bound and release its memory.

    python -m model.images.child SOURCE TARGET [SIZE FIT]

writes TARGET as PNG, or the model's view of SIZE pixels a side. Prints ``{"width", "height"}`` (exit code 0) or
``{"code", "detail"}`` (exit code 3).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from model.images.reader import ImageError, read_image
from model.images.view import model_view

REFUSED = 3  # exit code


def main(arguments: list[str]) -> int:
    """Read one image; return the exit code."""
    source, target, *view = arguments
    try:
        image = read_image(Path(source).read_bytes())
    except ImageError as error:
        return _refuse(error.code, error.detail)
    except MemoryError:
        return _refuse("insufficient_memory", "there is no memory left to decode the image")
    if view:
        image = model_view(image, int(view[0]), "pad" if view[1] == "pad" else "crop")
    try:
        image.save(target, "PNG", compress_level=1)  # images can be large: a third of the time for a sixth more bytes
    except OSError as error:
        return _refuse("disk_full", f"the image could not be written: {error}")
    sys.stdout.write(json.dumps({"width": image.width, "height": image.height}))
    return 0


def _refuse(code: str, detail: str) -> int:
    sys.stdout.write(json.dumps({"code": code, "detail": detail}))
    return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
