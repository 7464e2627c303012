"""The events of a response's stream as pydantic models: one model of `data` per type, as in `app.contract.events`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field

from app.contract.events import union_schemas
from app.contract.examples import RESPONSE, RESPONSE_ITEMS, example
from app.contract.schemas import Out
from app.http.responses.shapes import OutputItem, OutputText, ResponseOut, SummaryText

_REASONING, _IMAGE, _MESSAGE = RESPONSE_ITEMS
_BEGUN = RESPONSE | {"status": "queued", "completed_at": None, "output": [], "usage": None}


class _Event(Out):
    sequence_number: int = Field(ge=0, description="number in the stream, from 0 without gaps")


class _OfItem(_Event):
    item_id: str
    output_index: int = Field(ge=0, description="the item's place in `output`")


def _sample(type_: str, number: int, **fields: Any) -> ConfigDict:
    return example(type=type_, sequence_number=number, **fields)


def _of(item: Mapping[str, Any], index: int, **fields: Any) -> dict[str, Any]:
    return {"item_id": item["id"], "output_index": index, **fields}


class ResponseCreatedData(_Event):
    """The response exists: the first event."""

    model_config = _sample("response.created", 0, response=_BEGUN)

    type: Literal["response.created"]
    response: ResponseOut


class ResponseQueuedData(_Event):
    """The response waits for the engine."""

    model_config = _sample("response.queued", 1, response=_BEGUN)

    type: Literal["response.queued"]
    response: ResponseOut


class ResponseInProgressData(_Event):
    """The engine works on it."""

    model_config = _sample("response.in_progress", 2, response=_BEGUN | {"status": "in_progress"})

    type: Literal["response.in_progress"]
    response: ResponseOut


class OutputItemAddedData(_Event):
    """A new item of `output`."""

    model_config = _sample(
        "response.output_item.added", 3, output_index=0, item=_REASONING | {"status": "in_progress", "summary": []}
    )

    type: Literal["response.output_item.added"]
    output_index: int = Field(ge=0, description="the item's place in `output`")
    item: OutputItem


class OutputItemDoneData(_Event):
    """An item is complete, or nothing more follows."""

    model_config = _sample("response.output_item.done", 8, output_index=0, item=_REASONING)

    type: Literal["response.output_item.done"]
    output_index: int = Field(ge=0, description="the item's place in `output`")
    item: OutputItem


class SummaryPartAddedData(_OfItem):
    """The text of a step begins."""

    model_config = _sample(
        "response.reasoning_summary_part.added",
        4,
        **_of(_REASONING, 0, summary_index=0, part={"type": "summary_text", "text": ""}),
    )

    type: Literal["response.reasoning_summary_part.added"]
    summary_index: Literal[0]
    part: SummaryText


class SummaryTextDeltaData(_OfItem):
    """More text of a step; the deltas add up to it."""

    model_config = _sample(
        "response.reasoning_summary_text.delta", 5, **_of(_REASONING, 0, summary_index=0, delta="I look")
    )

    type: Literal["response.reasoning_summary_text.delta"]
    summary_index: Literal[0]
    delta: str


class SummaryTextDoneData(_OfItem):
    """The text of a step is complete."""

    model_config = _sample(
        "response.reasoning_summary_text.done",
        6,
        **_of(_REASONING, 0, summary_index=0, text=_REASONING["summary"][0]["text"]),
    )

    type: Literal["response.reasoning_summary_text.done"]
    summary_index: Literal[0]
    text: str


class SummaryPartDoneData(_OfItem):
    """The text of a step ends."""

    model_config = _sample(
        "response.reasoning_summary_part.done",
        7,
        **_of(_REASONING, 0, summary_index=0, part=_REASONING["summary"][0]),
    )

    type: Literal["response.reasoning_summary_part.done"]
    summary_index: Literal[0]
    part: SummaryText
    status: Literal["incomplete"] | None = Field(None, description="present if the step was interrupted")


class ImageCallInProgressData(_OfItem):
    """A step begins its image."""

    model_config = _sample("response.image_generation_call.in_progress", 10, **_of(_IMAGE, 1))

    type: Literal["response.image_generation_call.in_progress"]


class ImageCallGeneratingData(_OfItem):
    """The image is being generated."""

    model_config = _sample("response.image_generation_call.generating", 11, **_of(_IMAGE, 1))

    type: Literal["response.image_generation_call.generating"]


class PartialImageData(_OfItem):
    """A preview of the image."""

    model_config = _sample(
        "response.image_generation_call.partial_image",
        12,
        **_of(_IMAGE, 1, partial_image_index=0, partial_image_b64=_IMAGE["result"], output_format="png"),
    )

    type: Literal["response.image_generation_call.partial_image"]
    partial_image_index: int = Field(ge=0, description="number of the preview; numbers are left out while it is busy")
    partial_image_b64: str = Field(description="the PNG in base64; empty if the preview is gone")
    output_format: Literal["png"]


class ImageCallCompletedData(_OfItem):
    """The image is complete."""

    model_config = _sample("response.image_generation_call.completed", 15, **_of(_IMAGE, 1))

    type: Literal["response.image_generation_call.completed"]


class ContentPartAddedData(_OfItem):
    """The answer begins."""

    model_config = _sample(
        "response.content_part.added",
        18,
        **_of(_MESSAGE, 2, content_index=0, part=_MESSAGE["content"][0] | {"text": ""}),
    )

    type: Literal["response.content_part.added"]
    content_index: Literal[0]
    part: OutputText


class OutputTextDeltaData(_OfItem):
    """More text of the answer; the deltas add up to it."""

    model_config = _sample(
        "response.output_text.delta", 19, **_of(_MESSAGE, 2, content_index=0, delta="yellow", logprobs=[])
    )

    type: Literal["response.output_text.delta"]
    content_index: Literal[0]
    delta: str
    logprobs: list[Any] = Field(max_length=0)


class OutputTextDoneData(_OfItem):
    """The text of the answer is complete."""

    model_config = _sample(
        "response.output_text.done", 20, **_of(_MESSAGE, 2, content_index=0, text="yellow", logprobs=[])
    )

    type: Literal["response.output_text.done"]
    content_index: Literal[0]
    text: str
    logprobs: list[Any] = Field(max_length=0)


class ContentPartDoneData(_OfItem):
    """The answer ends."""

    model_config = _sample(
        "response.content_part.done", 21, **_of(_MESSAGE, 2, content_index=0, part=_MESSAGE["content"][0])
    )

    type: Literal["response.content_part.done"]
    content_index: Literal[0]
    part: OutputText


class ResponseCompletedData(_Event):
    """The whole response. The stream ends."""

    model_config = _sample("response.completed", 23, response=RESPONSE)

    type: Literal["response.completed"]
    response: ResponseOut


class ResponseIncompleteData(_Event):
    """The limit of tokens was reached, or the response was cancelled (see its `status`). The stream ends."""

    model_config = _sample("response.incomplete", 3, response=_BEGUN | {"status": "cancelled"})

    type: Literal["response.incomplete"]
    response: ResponseOut


class ResponseFailedData(_Event):
    """The response failed; `response.error` says why. The stream ends."""

    model_config = _sample(
        "response.failed",
        3,
        response=_BEGUN
        | {
            "status": "failed",
            "error": {
                "code": "server_error",
                "message": "the server stopped before the trace finished; try again",
                "type": "interrupted",
            },
        },
    )

    type: Literal["response.failed"]
    response: ResponseOut


RESPONSE_EVENTS: Mapping[str, type[Out]] = {
    "response.created": ResponseCreatedData,
    "response.queued": ResponseQueuedData,
    "response.in_progress": ResponseInProgressData,
    "response.output_item.added": OutputItemAddedData,
    "response.reasoning_summary_part.added": SummaryPartAddedData,
    "response.reasoning_summary_text.delta": SummaryTextDeltaData,
    "response.reasoning_summary_text.done": SummaryTextDoneData,
    "response.reasoning_summary_part.done": SummaryPartDoneData,
    "response.image_generation_call.in_progress": ImageCallInProgressData,
    "response.image_generation_call.generating": ImageCallGeneratingData,
    "response.image_generation_call.partial_image": PartialImageData,
    "response.image_generation_call.completed": ImageCallCompletedData,
    "response.content_part.added": ContentPartAddedData,
    "response.output_text.delta": OutputTextDeltaData,
    "response.output_text.done": OutputTextDoneData,
    "response.content_part.done": ContentPartDoneData,
    "response.output_item.done": OutputItemDoneData,
    "response.completed": ResponseCompletedData,
    "response.incomplete": ResponseIncompleteData,
    "response.failed": ResponseFailedData,
}


def event_schemas() -> dict[str, Any]:
    """JSON schemas of the stream: the data of each event, and their union `ResponseEvent`."""
    about = "The data of one server-sent event; `sequence_number` is also its `id`, and `type` its `event`."
    return union_schemas("ResponseEvent", RESPONSE_EVENTS, by="type", description=about)
