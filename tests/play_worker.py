"""A training worker that simulates its job: `python -m tests.play_worker JOB_DIR [--resume]`.

For work on the pages: it emits plausible losses, rewards, samples with images, warnings, checkpoints and reports in the
order of a real worker, at OMNI_R1_PLAY_PACE seconds per step (0.05). SIGTERM stops it at a step boundary, like a real
worker; `--resume` continues after that step.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from training.jobs.log import JobLog

PACE_S = float(os.environ.get("OMNI_R1_PLAY_PACE", "0.05"))
STOPPED = 3
QUESTIONS = (
    ("natural", "What colour is the thing left of the star?", "red"),
    ("structured", "Which bar is the highest?", "B"),
    ("diagrammatic", "Where do the two lines meet?", "inside"),
    ("operational", "Where is the walker after right, up, up?", "C3"),
)


class Stopped(Exception):
    """A stop was requested."""


class Play:
    """One simulated job."""

    def __init__(self, folder: Path, resume: bool) -> None:
        self.folder = folder
        self.job: dict[str, Any] = json.loads((folder / "job.json").read_text())
        self.spec: dict[str, Any] = self.job["spec"]
        self.random = random.Random(int(self.spec.get("seed", 0)))
        self.log = JobLog(folder, tensorboard=False)
        self.asked_to_stop = False
        self.state = folder / "runs" / "state.pt"  # as in a real job: the server looks for it before a resume
        self.done: dict[str, int] = json.loads(self.state.read_text()) if resume and self.state.exists() else {}

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)
        try:
            for stage, given in stages(self.spec):
                getattr(self, stage)(given)
        except Stopped:
            self.log.log("stopped at a step boundary; its state is saved")
            return STOPPED
        finally:
            self.state.parent.mkdir(exist_ok=True)
            self.state.write_text(json.dumps(self.done))
            self.log.close()
        (self.folder / "result.json").write_text("{}")
        return 0

    def _ask(self, *_: object) -> None:
        self.asked_to_stop = True

    def steps(self, stage: str, total: int) -> Iterator[int]:
        for step in range(self.done.get(stage, 0) + 1, total + 1):
            if self.asked_to_stop:
                raise Stopped
            yield step
            self.done[stage] = step
            self.log.progress(stage, step, total, (total - step) * PACE_S)
            time.sleep(PACE_S)

    # ---- stages

    def zero(self, _given: dict[str, Any]) -> None:
        for step in self.steps("zero", 10):
            self.log.metrics("zero", step, {"pictures/blank_share": 0.02 + 0.01 * self.random.random()})
            if step % 5 == 0:
                self.sample("zero", step, 0.5)
        told = {
            "chains": 90,
            "accepted": 79,
            "rejected": {"blank": 7, "copied": 4},
            "blank_share": 0.023,
            "diversity": {"kept": 0.81, "candidates_of_a_step": 0.44},
            "by_slice": {name: {"chains": 20, "accepted": 17, "kept_right": 0.6} for name, _, _ in QUESTIONS},
            "scores": {"edges": [k / 24 for k in range(25)], "counts": [min(k, 24 - k) ** 2 for k in range(24)]},
        }
        sheet = self.log.save_image(contact_sheet(self.random), "contact-sheet")
        self.log.report("bootstrapping", {"stage": "zero", **told, "contact_sheet": sheet})

    def pesft(self, given: dict[str, Any]) -> None:
        total = int(given.get("steps") or 200)
        for step in self.steps("pesft", total):
            fall = math.exp(-3 * step / total)
            noise = self.random.uniform(0.94, 1.06)
            values = {
                "loss/text": (0.3 + 3.2 * fall) * noise,
                "loss/image": (1.4 + 3.8 * fall) * noise,
                "loss/perception": (0.5 + 38 * fall**2) * noise,
                "loss/ce": (0.9 + 3.4 * fall) * noise,
                "optim/lr": 1e-3 * (1 - step / total),
                "optim/grad_norm": 0.8 * noise,
                "speed/tokens_per_s": 5200 * noise,
            }
            self.log.metrics("pesft", step, values)
            if step == 3:
                self.log.warning("samples_rejected", "4 of 8,000 samples left out: 3 too long, 1 without a picture")
            if step % max(1, total // 3) == 0:
                self.checkpoint("pesft", step, {"loss/ce": values["loss/ce"]})

    def perpo(self, given: dict[str, Any]) -> None:
        total = int(given.get("steps") or 60)
        for step in self.steps("perpo", total):
            share = step / total
            wobble = self.random.uniform(-0.04, 0.04)
            accuracy = 0.52 + 0.3 * share + wobble
            perception = 0.44 + 0.1 * share + wobble / 3
            form = min(1.0, 0.93 + 0.07 * share + wobble / 5)
            values = {
                "reward/accuracy": accuracy,
                "reward/format": form,
                "reward/perception": perception,
                "reward/total": 0.855 * accuracy + 0.095 * form + 0.05 * perception,
                "policy/kl": 0.012 * share + abs(wobble) / 40,
                "policy/entropy_text": 0.9 - 0.5 * share + wobble,
                "policy/entropy_image": 2.1 - 0.6 * share + wobble,
                "policy/clip_frac": 0.02 * share + abs(wobble) / 8,
                "groups/dropped_share": min(1, 0.25 + 0.3 * share + wobble),
                "pictures/blank_share": 0.01 + (0.2 * (share - 0.7) if share > 0.7 else 0),
                "pictures/copied_share": 0.02 + abs(wobble) / 4,
                "pictures/capped_share": 0.05 + abs(wobble) / 2,
                "pictures/malformed_share": 0.004,
                "response/len": 212 + 40 * wobble,
            }
            self.log.metrics("perpo", step, values)
            if step % 4 == 0:
                self.sample("perpo", step, accuracy)
            if step == int(total * 0.8):
                self.log.warning(
                    "blank_pictures", f"4.1 % of the pictures are flat, twice as many as before (step {step})"
                )
            if step % max(1, total // 2) == 0:
                self.checkpoint("perpo", step, {"reward/accuracy": accuracy, "reward/total": values["reward/total"]})

    def benchmark(self, _given: dict[str, Any]) -> None:
        for step in self.steps("benchmark", 8):
            self.sample("benchmark", step, 0.8)
        row = {"tasks": 50, "accuracy": 0.78, "accuracy_ci95": [0.71, 0.83], "malformed": 0.0, "drawings_right": 0.8}
        summary = dict.fromkeys(("all", *(name for name, _, _ in QUESTIONS)), row)
        self.log.report("benchmark", {"checkpoint": self.job["base"]["name"], "summary": summary})

    # ---- images

    def sample(self, stage: str, step: int, accuracy: float) -> None:
        slice_, question, answer = self.random.choice(QUESTIONS)
        first = scene(self.random)
        second = first.copy()
        x, y = self.random.randint(4, 36), self.random.randint(4, 36)
        ImageDraw.Draw(second).rectangle((x, y, x + 20, y + 20), outline=(255, 0, 255), width=3)
        third = second.crop((x, y, x + 22, y + 22)).resize((64, 64), Image.Resampling.NEAREST)
        right = self.random.random() < accuracy
        score = self.random.uniform(0.3, 0.6)
        total = 0.855 * right + 0.095 + 0.05 * score
        self.log.sample(
            stage,
            step,
            question=question,
            question_image=first,
            steps=[
                {"text": "I look for the thing that the question names and draw a box around it.", "image": second},
                {"text": "I zoom in on the box.", "image": third},
            ],
            answer=answer if right else "blue",
            reference=answer,
            slice=slice_,
            rewards={"total": total, "accuracy": float(right), "format": 1.0, "perception": score},
            advantage=0.8 if right else -1.1,
        )

    def checkpoint(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        name = f"{self.job['output_prefix']}-{f'{stage}-' if self.spec['method'] == 'pipeline' else ''}step-{step}"
        folder = self.folder / "checkpoints" / name
        shutil.copytree(self.job["base"]["folder"], folder, dirs_exist_ok=True)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest |= {"name": name, "base": self.job["base"]["name"], "files": {}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        self.log.checkpoint(name, folder, stage, step, metrics)
        self.log.log(f"saved {name}")


def stages(spec: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The stages of a spec with the hyperparameters of each."""
    given = spec["hyperparameters"]
    if spec["method"] == "pipeline":
        return [(name, given[name]) for name in ("zero", "pesft", "perpo", "benchmark") if given.get(name)]
    return [(spec["method"], given)]


def scene(dice: random.Random) -> Image.Image:
    """A few objects on a light background."""
    picture = Image.new("RGB", (64, 64), (236, 232, 220))
    draw = ImageDraw.Draw(picture)
    for colour in ((200, 40, 40), (40, 90, 200), (40, 150, 70)):
        x, y = dice.randint(2, 46), dice.randint(2, 46)
        draw.ellipse((x, y, x + 14, y + 14), fill=colour)
    return picture


def contact_sheet(dice: random.Random) -> Image.Image:
    """Many images in one."""
    sheet = Image.new("RGB", (8 * 68, 4 * 68), (255, 255, 255))
    for k in range(32):
        sheet.paste(scene(dice), (k % 8 * 68 + 2, k // 8 * 68 + 2))
    return sheet


if __name__ == "__main__":
    sys.exit(Play(Path(sys.argv[1]), "--resume" in sys.argv[2:]).run())
