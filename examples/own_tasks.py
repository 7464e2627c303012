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
MARK = (220, 30, 30)


class Dots:
    """Two to five blue dots on white; each step puts a red mark on the next one, from the left."""

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
            ImageDraw.Draw(drawn).rectangle((x - 3, y - 3, x + 3, y + 3), fill=MARK)
            steps.append(OwnStep(f"I mark dot {number}.", drawn, f"{number} marked"))
        return OwnTask("How many dots are there?", image, str(len(dots)), tuple(steps))

    def check(self, task: OwnTask, step: int, before: Image.Image, drawn: Image.Image) -> bool:
        """Whether the cells that turned red are exactly those of the reference."""
        return red_cells(drawn) == red_cells(task.steps[step - 1].image) != red_cells(before)


def red_cells(image: Image.Image) -> set[tuple[int, int]]:
    """The cells whose middle is redder than blue."""
    red, _, blue = image.split()
    redder = ImageChops.subtract(red, blue)
    return {(x, y) for x, y in CELLS if redder.crop((x - 2, y - 2, x + 2, y + 2)).resize((1, 1)).getpixel((0, 0)) > 90}
