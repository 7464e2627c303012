"""JSON of branches, groups, tokens and their alternatives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from app.contract.schemas import (
    CHECKPOINT_NAME_LENGTH,
    CheckpointText,
    In,
    Metadata,
    Out,
    SamplingIn,
    Trace,
    VerifyIn,
    clean_text,
)
from app.contract.words import MAX_SAMPLES, MAX_STEPS, GroupKind, GroupStatus, Mode, Replacement, Status

MAX_STEP_CHARS = 8_000
TRACE = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(clean_text)]
StepNumber = Annotated[int, Field(ge=1, le=MAX_STEPS)]
StepText = Annotated[str, Field(max_length=MAX_STEP_CHARS), AfterValidator(clean_text)]
Samples = Annotated[int, Field(ge=1, le=MAX_SAMPLES, description="samples that share one prefill")]

# ---- requests


class Picture(In):
    """An image to put into a step: a stored one, its bytes, or one that is known from context."""

    image_id: str | None = Field(None, min_length=1, max_length=128)
    data_url: str | None = Field(None, min_length=1, description="`data:image/…;base64,…`")
    use: Literal["previous", "blank", "question", "reference", "other"] | None = Field(
        None,
        description="the step before's image (the question's at step 1), a white image, the question's last image, the "
        "task's reference for this step, or the image of `step` in `trace_id`",
    )
    trace_id: TRACE | None = None
    step: StepNumber | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Picture:
        if sum(value is not None for value in (self.image_id, self.data_url, self.use)) != 1:
            raise ValueError("give exactly one of image_id, data_url and use")
        named = [value is not None for value in (self.trace_id, self.step)]
        if not (all(named) if self.use == "other" else not any(named)):
            raise ValueError('"use": "other" needs trace_id and step, and nothing else takes them')
        return self


class Edit(In):
    """Another text or another image for a kept step."""

    step: StepNumber
    text: StepText | None = None
    image: Picture | None = None

    @model_validator(mode="after")
    def _something(self) -> Edit:
        if self.text is None and self.image is None:
            raise ValueError("an edit needs a text or an image")
        return self


class ThenToken(In):
    """A token to go on with, from `POST …/alternatives`: the tokens before it are kept."""

    step: StepNumber | Literal["answer"]
    token: int = Field(ge=0)
    id: int = Field(ge=0)


class BranchCreate(In):
    """Body of `POST /v1/traces/{id}/branches`. Absent fields are the parent's."""

    after_step: int = Field(ge=0, le=MAX_STEPS, description="keep steps 1 … k; 0: only the question")
    edits: list[Edit] = Field(default_factory=list, max_length=MAX_STEPS)
    then_text: StepText | None = Field(None, min_length=1, description="beginning of the next step's text")
    then_token: ThenToken | None = None
    then: Literal["answer"] | None = Field(None, description="force the answer mark")
    n: Samples = 1
    checkpoint: CheckpointText | None = Field(
        None, min_length=1, max_length=CHECKPOINT_NAME_LENGTH, description="default: exactly the parent's weights"
    )
    mode: Mode | None = None
    sampling: SamplingIn | None = None
    verify: VerifyIn | None = None
    partial_images: int | None = Field(None, ge=0, le=64)
    background: bool | None = None
    metadata: Metadata | None = None

    @model_validator(mode="after")
    def _consistent(self) -> BranchCreate:
        if sum(value is not None for value in (self.then_text, self.then_token, self.then)) > 1:
            raise ValueError("give at most one of then_text, then_token and then")
        steps = [edit.step for edit in self.edits]
        if len(set(steps)) < len(steps):
            raise ValueError("a step can be edited only once")
        return self


class AlternativesIn(In):
    """Body of `POST /v1/traces/{id}/alternatives`: a token of `GET …/tokens`."""

    step: StepNumber | Literal["answer"]
    token: int = Field(ge=0)


# ---- responses


class BranchList(Out):
    """The created branches."""

    data: list[Trace]


class Tally(Out):
    """How many members of a group gave one answer."""

    answer: str | None
    count: int
    share: float
    mean_logprob: float | None = Field(description="of the answer's tokens, mean over the members")
    verdict: Literal["right", "wrong"] | None = None


class Effect(Out):
    """What replacing one image changed."""

    trace_id: str
    step: int
    with_: Replacement = Field(alias="with")
    answer_before: str | None
    answer_after: str | None
    changed: bool | None = Field(description="null while it runs, or if it did not complete")
    verdict_before: Literal["right", "wrong"] | None
    verdict_after: Literal["right", "wrong"] | None
    later_images_changed: int | None = Field(description="number of later images that differ")


class Skipped(Out):
    """A replacement that is not possible."""

    step: int
    with_: Replacement = Field(alias="with")
    reason: str


class Group(Out):
    """Traces that were created together."""

    id: str
    kind: GroupKind
    trace_ids: list[str]
    status: GroupStatus
    tally: list[Tally] = Field(description="most frequent answer first")
    agreement: float | None = Field(description="share of the most frequent answer; null without answers")
    trace_id: str | None = Field(None, description="of an intervention: the trace that it changes")
    effects: list[Effect] | None = Field(None, description="of an intervention: what each member changed")
    skipped: list[Skipped] | None = Field(None, description="of an intervention: what was not possible")
    created_at: str
    finished_at: str | None


class GroupList(Out):
    """A page of groups, newest first."""

    data: list[Group]
    has_more: bool


class TreeNode(Out):
    """A trace in its tree."""

    id: str
    parent_id: str | None
    after_step: int | None
    edited_steps: list[int]
    status: Status | Literal["deleted"]
    answer: str | None
    verdict: Literal["right", "wrong"] | None
    checkpoint: str | None
    seed: int | None
    intervention: bool = Field(description="it measures what replacing an image changes")


class Tree(Out):
    """A trace with its relatives."""

    root: str
    nodes: list[TreeNode]


class TokenOut(Out):
    """A token; `logprob` is null where it was given."""

    text: str
    logprob: float | None


class StepTokens(Out):
    """The tokens of a step before its codes, and the log-probability of each code as rows of the image."""

    index: int
    tokens: list[TokenOut]
    image: list[list[float | None]] | None = None


class TokensOut(Out):
    """Every token of a trace."""

    steps: list[StepTokens]
    answer: list[TokenOut]


class AlternativeOut(Out):
    """A token that could have stood there."""

    id: int
    text: str
    logprob: float


class AlternativesOut(Out):
    """The likeliest tokens, best first."""

    data: list[AlternativeOut]
