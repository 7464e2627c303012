"""The events of a trace's stream as pydantic models: one model of `data` per type.

To add an event: write its model with an example, add it to its stream's table, and describe it in docs/api.md. OpenAPI,
the generated clients and the tests read the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, create_model
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core.core_schema import WithDefaultSchema

from app.contract.examples import CANDIDATES, STEP_IMAGE, TIMINGS, TRACE_ID, USAGE, example
from app.contract.schemas import CandidatesOut, ErrorOut, ImageOut, Out, StepImage, TimingsOut, UsageOut
from app.contract.words import Mode

Step = Annotated[int, Field(ge=1, description="number of the step, from 1")]
Skill = Literal["box", "zoom", "line", "mark", "predict"]


class BudgetOut(Out):
    """What the context leaves for a trace."""

    context_len: int = Field(description="tokens of the checkpoint's context")
    max_new_tokens: int = Field(description="tokens that the trace may generate")
    room_images: int = Field(description="images that fit")


class ImageStatsOut(Out):
    """Statistics of an image's codes."""

    codes: int = Field(description="number of different codes")
    flatness: float = Field(description="share of the most common code")
    tv: float = Field(description="E_2D: mean squared distance of neighbouring codes")
    perception_reward: float = Field(description="R_Pe; 0 for a flat image")
    copied: float | None = Field(None, description="share of codes that equal those of the image before, if known")
    passes: int | None = Field(None, ge=1, description="forward passes from the first code to the last, if generated")


class TraceQueuedData(Out):
    """The trace waits for the engine; sent again on each change."""

    model_config = example(position=0)

    position: int = Field(ge=0, description="number of traces before it")


class TraceStartedData(Out):
    """The trace runs: its seed, its weights, and what the context leaves for it."""

    model_config = example(
        seed=81,
        checkpoint="nano-omni-r1",
        weight_version=1,
        prompt_tokens=76,
        budget={"context_len": 768, "max_new_tokens": 692, "room_images": 10},
    )

    seed: int = Field(ge=0, description="repeats the trace")
    checkpoint: str
    weight_version: int = Field(ge=1)
    prompt_tokens: int
    budget: BudgetOut


class StepKeptData(Out):
    """A step that a branch takes over from its parent; it stands for all events of the step."""

    model_config = example(step=1, text="I look for the star.", image=STEP_IMAGE, edited=False)

    step: Step
    text: str
    image: StepImage | None = None
    edited: bool = Field(description="a person changed the step, here or in an ancestor")
    reencoded: Literal[True] | None = Field(
        None, description="present if the image went through the encoder: it is what the model sees of it"
    )
    source_image_id: str | None = Field(None, description="the image that an edit gave")


class StepStartedData(Out):
    """A step begins."""

    model_config = example(step=1)

    step: Step


class TextDeltaData(Out):
    """More text of a step; the deltas of a step add up to its text."""

    model_config = example(step=1, text=" look")

    step: Step
    text: str


class ImageStartedData(Out):
    """A step begins to draw its image."""

    model_config = example(step=1, skill="mark")

    step: Step
    skill: Skill | None = Field(None, description="absent if the step's text names none")


class ImagePartialData(Out):
    """A preview of the image that is being drawn; only with `partial_images`."""

    model_config = example(step=1, index=0, codes_done=21, codes_total=64, url=f"/v1/traces/{TRACE_ID}/partials/1-0")

    step: Step
    index: int = Field(ge=0, description="number of the preview, from 0")
    codes_done: int
    codes_total: int
    url: str | None = Field(description="null if the decoder was busy, and in the last preview: the image follows")


class ImageCandidatesData(CandidatesOut):
    """The step's image was drawn several times, and one of them goes on; only with `verify`."""

    model_config = example(step=1, images=CANDIDATES, scores=[-9.1, -2.3], chosen=1)

    step: Step


class ImageCompletedData(ImageOut):
    """The image of a step is stored."""

    model_config = example(step=1, **{key: value for key, value in STEP_IMAGE.items() if key != "skill"})

    step: Step
    stats: ImageStatsOut


class StepCompletedData(Out):
    """A step ends."""

    model_config = example(step=1)

    step: Step


class TracePausedData(Out):
    """The trace pauses after this step, and holds no engine slot."""

    model_config = example(step=1)

    step: Step


class TraceResumedData(Out):
    """A paused trace continues."""

    model_config = example(mode="auto")

    mode: Mode


class AnswerDeltaData(Out):
    """More text of the answer; the deltas add up to it, apart from outer white space."""

    model_config = example(text="yellow")

    text: str


class TraceCompletedData(Out):
    """The trace has an answer. The stream ends."""

    model_config = example(answer="yellow", finish_reason="stop", usage=USAGE, timings=TIMINGS)

    answer: str | None = Field(description="the text after the answer mark, stripped; null without one")
    finish_reason: Literal["stop", "length"]
    usage: UsageOut
    timings: TimingsOut
    unmarked: Literal[True] | None = Field(
        None, description="present if the response has no answer mark: the text after its last image is the answer"
    )


class TraceCancelledData(Out):
    """The trace was cancelled. The stream ends."""

    model_config = example(reason="user")

    reason: Literal["user", "disconnected"]


class TraceFailedData(Out):
    """The trace failed, or the server stopped or died (`interrupted`). The stream ends."""

    model_config = example(
        error={"code": "interrupted", "detail": "the server stopped before the trace finished; try again"}
    )

    error: ErrorOut


TRACE_EVENTS: Mapping[str, type[Out]] = {
    "trace.queued": TraceQueuedData,
    "trace.started": TraceStartedData,
    "step.kept": StepKeptData,
    "step.started": StepStartedData,
    "text.delta": TextDeltaData,
    "image.started": ImageStartedData,
    "image.partial": ImagePartialData,
    "image.candidates": ImageCandidatesData,
    "image.completed": ImageCompletedData,
    "step.completed": StepCompletedData,
    "trace.paused": TracePausedData,
    "trace.resumed": TraceResumedData,
    "answer.delta": AnswerDeltaData,
    "trace.completed": TraceCompletedData,
    "trace.cancelled": TraceCancelledData,
    "trace.failed": TraceFailedData,
}


# ---- OpenAPI

_REFERENCE = "#/components/schemas/{model}"


class _NoNullDefaults(GenerateJsonSchema):
    """Leaves out null as a default, as FastAPI does: an absent field is absent, and generators would require it."""

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        shape = super().default_schema(schema)
        return {key: value for key, value in shape.items() if (key, value) != ("default", None)}


def stream_schemas(name: str, events: Mapping[str, type[Out]]) -> dict[str, Any]:
    """JSON schemas of a stream: its events `{id, event, data}`, their data, and the union `name` of all events."""
    whole = {type_: _whole_event(number, type_, data) for number, (type_, data) in enumerate(events.items(), 1)}
    about = "One server-sent event: `event` is its type, `id` its number, `data` its parsed JSON."
    return union_schemas(name, whole, by="event", description=about)


def union_schemas(name: str, models: Mapping[str, type[Out]], *, by: str, description: str) -> dict[str, Any]:
    """JSON schemas of the models and of their union `name`, in which the field `by` has the keys as its values."""
    _, schema = models_json_schema(
        [(model, "validation") for model in models.values()], ref_template=_REFERENCE, schema_generator=_NoNullDefaults
    )
    references = {value: _REFERENCE.format(model=model.__name__) for value, model in models.items()}
    union = {
        "title": name,
        "description": description,
        "oneOf": [{"$ref": reference} for reference in references.values()],
        "discriminator": {"propertyName": by, "mapping": references},
    }
    return {**schema["$defs"], name: union}


def _whole_event(number: int, type_: str, data: type[Out]) -> type[Out]:
    """The model of `{id, event, data}`; `TraceStartedData` gives `TraceStartedEvent`."""
    (sample,) = data.model_json_schema()["examples"]
    fields: dict[str, Any] = {
        "id": (int, Field(ge=1, description="number in the stream, from 1 without gaps")),
        "event": (Literal[type_], ...),
        "data": (data, ...),
    }
    return create_model(
        data.__name__.removesuffix("Data") + "Event",
        __base__=Out,
        __doc__=data.__doc__,
        __cls_kwargs__={"json_schema_extra": {"examples": [{"id": number, "event": type_, "data": sample}]}},
        **fields,
    )
