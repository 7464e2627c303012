"""`omni-r1` with a wall clock that is wrong by the seconds in a file: `python -m tests.attack.clocked FILE serve …`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

if __name__ == "__main__":
    offset, right = Path(sys.argv[1]), time.time
    time.time = lambda: right() + float(offset.read_text())  # before any module takes it

    from app.cli.main import main

    sys.exit(main(sys.argv[2:]))
