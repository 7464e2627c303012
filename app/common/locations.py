"""Where the program's own files are, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_APP = Path(__file__).resolve().parents[1]
ROOT = _APP.parent  # holds the packages app, model and training
STATIC = _APP / "static" if (_APP / "static").is_dir() else ROOT / "static"  # a wheel has it inside `app`
