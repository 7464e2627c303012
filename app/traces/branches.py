"""Validation before a branch is created: which steps of the parent it keeps, how they are edited, what must follow.

Blocking: call from a thread. Counts tokens with the checkpoint's own template, without torch; images that are not codes
of this VQ yet go to the engine, which encodes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Row

from app.checkpoints.folder import CheckpointInfo
from app.checkpoints.registry import CheckpointRegistry
from app.common import pools
from app.contract.problems import Problem, field_problem
from app.contract.schemas import SamplingIn, VerifyIn
from app.contract.schemas_branches import BranchCreate, ThenToken
from app.contract.words import TERMINAL
from app.storage.database import Database
from app.storage.images import ImageStore
from app.traces.edits import EditImages, GivenImage, Parent, bad_edit, codes_of
from app.traces.intake import Intake, Kept, Prepared, Room, resolve_sampling, sampling_row
from app.traces.reader import no_trace
from app.traces.records import store, tokens
from app.traces.tasks import TaskWorld
from app.traces.token_service import check_token, no_tokens, part_of
from model.engine.messages import ImageInput, KeptStep, Prefix, Tokens
from model.engine.phases import Legal, PhaseRules, PhaseState
from model.engine.sequence import DRAWS_PER_TOKEN, SamplingParams
from model.text.prefix import GivenIds, GivenStep, given_ids
from model.text.template import Template

BRANCHABLE = TERMINAL | {"paused"}


class BranchIntake:
    """Turns the body of a branch into a `Prepared`, or raises :class:`Problem`."""

    def __init__(
        self,
        db: Database,
        intake: Intake,
        images: ImageStore,
        checkpoints: CheckpointRegistry,
        world: TaskWorld,
    ) -> None:
        self._db = db
        self._intake = intake
        self._images = images
        self._checkpoints = checkpoints
        self._edits = EditImages(db, intake, images, world)

    def parent(self, trace_id: str) -> Parent:
        """The parent; 404 if unknown, 409 while it is queued or running."""
        with self._db.read() as connection:
            row = store.get_row(connection, trace_id)
            if row is None:
                raise no_trace()
            if row.status not in BRANCHABLE:
                raise Problem("trace_live", f"the trace is {row.status}; wait until it ends, pause it or cancel it")
            complete = store.num_complete(connection, trace_id)
            steps = store.fold(store.events_of(connection, trace_id))["steps"]
            response = tokens.response_of(connection, trace_id)
        return Parent(row, [step for step in steps if step["index"] <= complete], response)

    async def prepared(self, parent: Parent, body: BranchCreate, info: CheckpointInfo) -> Prepared:
        """As `prepare`, in a thread; requests with images to decode wait in the image threads."""
        if any(edit.image is not None and edit.image.data_url is not None for edit in body.edits):
            return await self._intake.decoding(self.prepare, parent, body, info)
        return await pools.intake.run(self.prepare, parent, body, info)

    def prepare(self, parent: Parent, body: BranchCreate, info: CheckpointInfo) -> Prepared:
        """Validate the branch and store its images."""
        if body.after_step > len(parent.steps):
            raise field_problem("no_such_step", "body.after_step", f"the trace has {len(parent.steps)} complete steps")
        row, template = parent.row, self._checkpoints.template(info)
        self._intake.check_count(len(row.images), info, "body.checkpoint")
        inputs = self._intake.inputs(row.images)
        elsewhere = (info.name, self._checkpoints.version_of(info)) != (row.checkpoint, row.weight_version)
        steps, kept = self._steps(parent, body, info, template, elsewhere=elsewhere)
        _check_draws(steps, body, info, template)
        then, num_draws = _then(parent, body, template)
        prefix = Prefix(
            tuple(steps),
            codec=row.codec or "",
            num_draws=num_draws,
            then_tokens=then,
            then_text=_clean(body.then_text, "body.then_text", template),
            then_answer=body.then == "answer",
        )
        room = self._intake.room(row.question, len(row.images), info)
        sampling = _sampling(row, body.sampling, info, room)
        _check_room(_count(prefix, template), sampling, template, body.then_token)
        values = {
            "question": row.question,
            "images": row.images,
            "mode": body.mode or row.mode,
            "checkpoint": info.name,
            "sampling": sampling_row(sampling),
            "verify": self._verify(row, body, info),
            "partial_images": row.partial_images if body.partial_images is None else body.partial_images,
            "metadata": row.metadata if body.metadata is None else body.metadata,
            "task_id": row.task_id,
            "slice": row.slice,
            "root_id": row.root_id or row.id,
            "parent_id": row.id,
            "parent_group_id": row.group_id,
            "after_step": body.after_step,
            "edited_steps": sorted(edit.step for edit in body.edits),
            "all_edits": _not_the_models_own(parent, body, kept),
            "num_draws": num_draws,
        }
        return Prepared(inputs, values, prefix, tuple(kept))

    def _verify(self, row: Row[Any], body: BranchCreate, info: CheckpointInfo) -> dict[str, Any] | None:
        """The parent's choice among candidates; another checkpoint is judged by a verifier of its own."""
        if body.verify is not None or row.verify is None:
            return self._intake.verify_row(body.verify, info)
        same = row.verify["verifier"] if info.name == row.checkpoint else None
        return self._intake.verify_row(VerifyIn(candidates=row.verify["candidates"], verifier=same), info)

    def _steps(
        self, parent: Parent, body: BranchCreate, info: CheckpointInfo, template: Template, *, elsewhere: bool
    ) -> tuple[list[KeptStep], list[Kept]]:
        edits = {edit.step: (f"body.edits.{index}", edit) for index, edit in enumerate(body.edits)}
        for index, edit in enumerate(body.edits):
            if edit.step > body.after_step:
                raise bad_edit(f"body.edits.{index}.step", f"only steps up to after_step ({body.after_step}) are kept")
        exact = _exact(parent, body, template)
        steps: list[KeptStep] = []
        kept: list[Kept] = []
        for number in range(1, body.after_step + 1):
            old = parent.steps[number - 1]
            path, changed = edits.get(number, ("body.edits", None))
            text, shown = old["text"], old.get("image")
            source = None if changed else old.get("source_image_id")
            if changed is not None and changed.text is not None:
                text = _clean(changed.text, f"{path}.text", template) or ""
            if changed is not None and changed.image is not None:
                place = f"{path}.image"
                given = self._edits.of(changed.image, place, number, parent, steps, kept, info, template)
            else:
                given = self._unchanged(parent, number, info, template, elsewhere=elsewhere)
            if not text and given.input is None and given.codes is None:
                raise bad_edit(path, "the step would be empty")
            ids = parent.response.steps[number - 1].ids if exact[number - 1] and parent.response is not None else None
            steps.append(KeptStep(text, ids, given.codes, given.input))
            is_edited = changed is not None or bool(old.get("edited"))
            skill = shown.get("skill") if shown is not None else None
            kept.append(Kept(text, given.image, is_edited, skill, given.source_image_id or source))
        return steps, kept

    def _unchanged(
        self, parent: Parent, number: int, info: CheckpointInfo, template: Template, *, elsewhere: bool
    ) -> GivenImage:
        """The image of a step that is not edited; its pixels only if its codes may not do.

        Raises :class:`Problem` ``image_not_found`` if its file is gone.
        """
        shown = parent.steps[number - 1].get("image")
        if shown is None:
            return GivenImage(None, None, None, None)
        if elsewhere and shown["width"] != info.resolution:
            raise field_problem(
                "incompatible_checkpoint",
                "body.checkpoint",
                f"{info.name} draws {info.resolution} px images, but the trace has {shown['width']} px images",
            )
        codes = parent.codes(number, template)
        png = self._images.use(shown["image_id"])
        return GivenImage(ImageInput(png) if codes is None or elsewhere else None, codes, shown, None)


def _check_draws(steps: list[KeptStep], body: BranchCreate, info: CheckpointInfo, template: Template) -> None:
    """422 if kept steps have images and the checkpoint cannot draw: it could not show what it makes of them."""
    draws = info.manifest is None or info.manifest.capabilities.images_in_answer
    if draws or not any(step.image or step.codes or codes_of(step.tokens, template) for step in steps):
        return
    path = "body.edits" if body.checkpoint is None else "body.checkpoint"
    raise field_problem("incompatible_checkpoint", path, f"{info.name} draws no images, but a kept step has one")


def _not_the_models_own(parent: Parent, body: BranchCreate, kept: Sequence[Kept]) -> list[int]:
    """Steps that a person changed, here or in an ancestor, or whose beginning a person chose."""
    edited = {number for number, step in enumerate(kept, 1) if step.edited}
    edited |= {number for number in parent.row.all_edits or () if number <= body.after_step}
    if body.then_text is not None or (body.then_token is not None and body.then_token.step != "answer"):
        edited.add(body.after_step + 1)
    return sorted(edited)


def _exact(parent: Parent, body: BranchCreate, template: Template) -> list[bool]:
    """Which kept steps go in with their own tokens: unedited ones whose neighbours begin and end where they do.

    A step without an image ends with the next mark, which its tokens include.
    """
    edited = {edit.step for edit in body.edits}
    count, response = body.after_step, parent.response
    if response is None:
        return [False] * count
    clean = [step.ids[-1:] == (template.vocab.eoi_id,) for step in response.steps[:count]]
    exact = [number not in edited for number in range(1, count + 1)]
    goes_on = body.then_text is None and body.then is None
    for i in reversed(range(count)):
        follows = goes_on if i == count - 1 else exact[i + 1]
        exact[i] = exact[i] and (clean[i] or follows)
    for i in range(1, count):
        exact[i] = exact[i] and (clean[i - 1] or exact[i - 1])
    return exact


def _then(parent: Parent, body: BranchCreate, template: Template) -> tuple[tuple[int, ...], int]:
    """The exact tokens after the kept steps, and the position of the random numbers with which the branch begins."""
    response, row = parent.response, parent.row
    if response is None:
        if body.then_token is not None:
            raise no_tokens()
        return (), 0
    vocab = template.vocab
    draws = response.num_draws(body.after_step, vocab, began_after=row.after_step or 0, began_with=row.num_draws or 0)
    if body.then_token is None:
        return (), draws
    chunk, path = part_of(response, body.then_token.step, "body.then_token.step"), "body.then_token"
    follows = len(response.steps) + 1 if body.then_token.step == "answer" else body.then_token.step
    if follows != body.after_step + 1:
        raise bad_edit(f"{path}.step", f"the token must be in the part after after_step ({body.after_step})")
    if body.edits and body.after_step and not _exact(parent, body, template)[-1]:
        last = response.steps[body.after_step - 1]
        if last.ids[-1:] != (vocab.eoi_id,):
            raise bad_edit(path, "the step before is edited and has no image, so its tokens cannot be kept")
    check_token(chunk, body.then_token.token, template, f"{path}.token")
    before = Tokens(chunk.ids[: body.then_token.token], chunk.logprobs[: body.then_token.token])
    replaced = Tokens(chunk.ids[: body.then_token.token + 1], chunk.logprobs[: body.then_token.token + 1])
    return (*before.ids, body.then_token.id), draws + DRAWS_PER_TOKEN * tokens.num_drawn(replaced, vocab)


def _count(prefix: Prefix, template: Template) -> GivenIds:
    """The prefix with placeholder codes for images that are not encoded yet."""
    blank = (0,) * template.vocab.codes_per_image
    steps = [
        GivenStep(step.text, step.codes or (blank if step.image is not None else None), step.tokens)
        for step in prefix.steps
    ]
    return given_ids(
        template,
        steps,
        then_tokens=prefix.then_tokens,
        then_text=prefix.then_text,
        then_answer=prefix.then_answer,
    )


def _check_room(given: GivenIds, sampling: SamplingParams, template: Template, then: ThenToken | None) -> None:
    """422 unless the response can go on after the prefix."""
    limit, ids = sampling.max_new_tokens or 0, given.all
    path = "body.then_text" if given.then and then is None else "body.after_step"
    if len(ids) >= limit:
        raise field_problem(
            "prompt_too_long",
            path,
            f"the kept beginning takes {len(ids)} tokens and leaves the model no room: the limit is {limit}",
        )
    vocab = template.vocab
    rules = PhaseRules(vocab.boi_id, vocab.eoi_id, vocab.eos_id, vocab.codes_per_image)
    given_images = sum(token == vocab.boi_id for token in ids[:-1])
    state = PhaseState(rules, max_tokens=limit, max_images=max(sampling.max_images or 0, given_images))
    for token in ids[:-1]:
        state.push(token)
    if then is None:
        return
    legal = set(template.text_legal_ids()) - {vocab.eos_id}
    if state.legal is Legal.TEXT_OR_IMAGE:
        legal.add(vocab.boi_id)
    if then.id not in legal or state.finish_reason is not None:
        raise bad_edit("body.then_token.id", "this token is not allowed here, or would end the response")


def _sampling(row: Row[Any], asked: SamplingIn | None, info: CheckpointInfo, room: Room) -> SamplingParams:
    """The parent's parameters, with those that the request names, within the room of this checkpoint."""
    before = dict(row.sampling)
    before["max_new_tokens"] = min(before["max_new_tokens"] or room.room_tokens, max(1, room.room_tokens))
    inherited = SamplingIn(**before)
    changes = asked.model_dump(exclude_none=True) if asked is not None else {}
    return resolve_sampling(inherited.model_copy(update=changes), info, room)


def _clean(text: str | None, path: str, template: Template) -> str | None:
    """The text without outer white space; 422 for one with a mark of the template."""
    if text is None:
        return None
    if template.has_mark(text):
        raise bad_edit(path, "the text contains a template mark, which would end the step")
    return text.strip()
