"""How many codes of an image one forward pass may give (`model/engine/drafts.py`): the default, and the bounds."""

WINDOW = 32  # wider ones take no fewer passes on the shipped weights (docs/performance.md)
WIDEST = 1024
