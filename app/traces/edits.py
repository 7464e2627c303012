"""The images that edits of a branch ask for, and the parts of its parent. Blocking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from sqlalchemy.engine import Row

from app.checkpoints.folder import CheckpointInfo
from app.contract.problems import Problem, field_problem
from app.contract.schemas_branches import Picture
from app.storage.database import Database
from app.storage.images import ImageStore, encode_png
from app.traces.intake import Intake, Kept
from app.traces.records import store, tokens
from app.traces.tasks import TaskWorld
from model.engine.messages import ImageInput, KeptStep
from model.text.template import Template


@dataclass(frozen=True)
class Parent:
    """A trace that is branched: its row, its complete steps, and their tokens (None: an earlier version ran it)."""

    row: Row[Any]
    steps: list[dict[str, Any]]
    response: tokens.Response | None

    def codes(self, step: int, template: Template) -> tuple[int, ...] | None:
        """The codes of a step's image, if they are known."""
        if self.response is None or step > len(self.response.steps):
            return None
        return codes_of(self.response.steps[step - 1].ids, template)


@dataclass(frozen=True)
class GivenImage:
    """An image for a step: its codes or what to encode, and its JSON if it is stored as the model sees it."""

    input: ImageInput | None
    codes: tuple[int, ...] | None
    image: dict[str, Any] | None
    source_image_id: str | None


class EditImages:
    """Finds, stores and names the images of edits."""

    def __init__(self, db: Database, intake: Intake, images: ImageStore, world: TaskWorld) -> None:
        self._db = db
        self._intake = intake
        self._images = images
        self._world = world

    def of(
        self,
        picture: Picture,
        path: str,
        number: int,
        parent: Parent,
        steps: Sequence[KeptStep],
        kept: Sequence[Kept],
        info: CheckpointInfo,
        template: Template,
    ) -> GivenImage:
        """The image that an edit asks for."""
        question = parent.row.images[-1] if parent.row.images else None
        match picture.use:
            case "previous":
                for before in range(number - 1, 0, -1):
                    step, shown = steps[before - 1], kept[before - 1]
                    codes = step.codes or codes_of(step.tokens, template)
                    if codes is not None or step.image is not None:
                        image = step.image
                        if image is None and shown.image is not None:
                            image = ImageInput(self._images.read(shown.image["image_id"]))
                        return GivenImage(image, codes, shown.image, None)
                return self._question(question, path)
            case "question":
                return self._question(question, path)
            case "blank":
                return self._new(Image.new("RGB", (info.resolution, info.resolution), "white"))
            case "reference":
                return self._new(self._reference(parent.row.task_id, number, path))
            case "other":
                return self._other(picture, path, parent, template)
            case _:
                stored = self._intake.store_image(picture.image_id, picture.data_url, path)
                own = [
                    i for i, s in enumerate(parent.steps, 1) if s.get("image", {}).get("image_id") == stored.image_id
                ]
                codes = parent.codes(own[0], template) if own else None
                image = parent.steps[own[0] - 1]["image"] if codes is not None else None
                return GivenImage(ImageInput(self._images.read(stored.image_id)), codes, image, stored.image_id)

    def _question(self, question: dict[str, Any] | None, path: str) -> GivenImage:
        if question is None:
            raise bad_edit(f"{path}.use", "the question has no image")
        png = self._images.read(question["image_id"])
        return GivenImage(ImageInput(png, question["fit"]), None, None, question["image_id"])

    def _new(self, image: Image.Image) -> GivenImage:
        png = encode_png(image)
        stored = self._images.put(png, image.width, image.height)
        return GivenImage(ImageInput(png), None, None, stored.image_id)

    def _reference(self, task_id: str | None, number: int, path: str) -> Image.Image:
        if task_id is None:
            raise bad_edit(f"{path}.use", "only traces of a task have reference images")
        image = self._world.reference(task_id, number)
        if image is None:
            raise bad_edit(f"{path}.use", f"the task has no step {number}")
        return image

    def _other(self, picture: Picture, path: str, parent: Parent, template: Template) -> GivenImage:
        assert picture.trace_id is not None
        assert picture.step is not None
        with self._db.read() as connection:
            row = store.get_row(connection, picture.trace_id)
            steps = {} if row is None else {s["index"]: s for s in store.whole_row(connection, row)["steps"]}
            response = tokens.response_of(connection, picture.trace_id)
        image = steps.get(picture.step, {}).get("image")
        if row is None or image is None:
            raise bad_edit(f"{path}.trace_id", "no such trace, or its step has no image")
        codes = None
        if row.codec == parent.row.codec and response is not None and picture.step <= len(response.steps):
            codes = codes_of(response.steps[picture.step - 1].ids, template)
        shown = {key: image[key] for key in ("image_id", "url", "width", "height")} | {"stats": image.get("stats", {})}
        png = self._images.use(image["image_id"])
        return GivenImage(ImageInput(png), codes, shown if codes is not None else None, image["image_id"])


def codes_of(ids: Sequence[int] | None, template: Template) -> tuple[int, ...] | None:
    """The codes among a step's tokens, None without any."""
    found = (template.vocab.id_to_code(token) for token in ids or ())
    return tuple(code for code in found if code is not None) or None


def bad_edit(path: str, detail: str) -> Problem:
    """422 for a field of an edit."""
    return field_problem("bad_edit", path, detail)
