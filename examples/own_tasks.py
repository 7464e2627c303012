"""A task family of your own: count the dots, after marking each of them.

Name it in your package's pyproject.toml, and install the package next to omni-r1-studio:

    [project.entry-points."omni_r1.tasks"]
    dots = "own_tasks:Dots"

Then it is data for PeSFT, PeRPO and benchmarks: {"source": "tasks", "family": "dots", "num_samples": 2000}. Every job
first holds it against itself on its first 32 tasks: a checker that rejects its own reference, or accepts a blank or
unchanged image, ends the job and names the seed.
"""

from random import Random

from PIL import Image, ImageChops, ImageDraw

from training.data.families import OwnStep, OwnTask

CELLS = [(x, y) for x in (12, 32, 52) for y in (12, 32, 52)]
MARK = (255, 0, 255)  # the tokenizer of the embedded checkpoints keeps it; it loses small marks in red


class Dots:
    """Two to five blue dots on white; each step puts a mark on the next one, from the left."""

    description = "count the dots, after marking each of them"

    def make(self, seed: int) -> OwnTask:
        """Draw everything from the seed: the same seed is the same task."""
        rng = Random(f"dots/{seed}")
        dots = sorted(rng.sample(CELLS, rng.randint(2, 5)))
        image = Image.new("RGB", (64, 64), "white")
        for x, y in dots:
            ImageDraw.Draw(image).ellipse((x - 7, y - 7, x + 7, y + 7), fill=(40, 90, 200))
        steps, drawn = [], image
        for number, (x, y) in enumerate(dots, 1):
            drawn = drawn.copy()
            ImageDraw.Draw(drawn).rectangle((x - 4, y - 4, x + 4, y + 4), fill=MARK)
            steps.append(OwnStep(f"I mark dot {number}.", drawn, f"{number} marked"))
        return OwnTask("How many dots are there?", image, str(len(dots)), tuple(steps))

    def check(self, task: OwnTask, step: int, before: Image.Image, drawn: Image.Image) -> bool:
        """Whether the marked cells are exactly those of the reference, as they were not before."""
        return marked_cells(drawn) == marked_cells(task.steps[step - 1].image) != marked_cells(before)


def marked_cells(image: Image.Image) -> set[tuple[int, int]]:
    """The cells whose middle is much redder than green."""
    red, green, _ = image.split()
    redder = ImageChops.subtract(red, green)
    middles = {(x, y): redder.crop((x - 2, y - 2, x + 2, y + 2)).resize((1, 1)) for x, y in CELLS}
    return {cell for cell, middle in middles.items() if middle.getpixel((0, 0)) > 100}
