"""A task and its chain of steps as plain values. Knows nothing of drawing or checking."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image

SIZE = 64  # width and height of every image, in pixels

Level = str | int  # "normal", "hard", or a graded level 1 … 8
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class BoxTarget:
    """A box in ink with this outer edge, and no centre of another object inside."""

    box: Box
    others: tuple[Point, ...]


@dataclass(frozen=True)
class MarkTarget:
    """A blob of ink on this point."""

    point: Point


@dataclass(frozen=True)
class LineTarget:
    """A straight stroke of ink from `start` to `end` (in either direction).

    If `end` is the centre of a thing, `end_radius` is its radius: a line that reaches the rim counts.
    """

    start: Point
    end: Point
    end_radius: float = 0.0


@dataclass(frozen=True)
class ZoomTarget:
    """A crop of the previous image: the one of `candidates` at `index`."""

    candidates: tuple[Box, ...]
    index: int


@dataclass(frozen=True)
class StateTarget:
    """A complete new state: at each point (centre of a cell) the named colour (`palette.STATE_COLOURS`)."""

    cells: tuple[tuple[float, float, str], ...]


Target = BoxTarget | MarkTarget | LineTarget | ZoomTarget | StateTarget


@dataclass(frozen=True)
class Step:
    """One step of the chain. `state` describes the image in text (for the text-only control)."""

    text: str
    skill: str
    action: str
    image: Image.Image
    state: str
    target: Target


@dataclass(frozen=True)
class Task:
    """A question about an image, its answer and the chain that leads there; a pure function of slice and seed."""

    slice: str
    family: str
    seed: int
    question: str
    image: Image.Image
    steps: tuple[Step, ...]
    answer: str
    split: Level = "normal"
    choices: tuple[str, ...] = field(default=(), repr=False)  # possible answers to this question

    @property
    def task_id(self) -> str:
        """For example "natural-1000000123"; of other levels "natural-hard-1000000123", "natural-5-1000000123"."""
        middle = "" if self.split == "normal" else f"-{self.split}"
        return f"{self.slice}{middle}-{self.seed}"
