"""Responses, their items and the lists of them, as the `openai` package expects them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.contract.schemas import Out

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Nothing = Annotated[list[Any], Field(max_length=0)]


class SummaryText(Out):
    """The text of a step."""

    type: Literal["summary_text"]
    text: str


class ReasoningItem(Out):
    """A step's text."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[SummaryText] = Field(description="at most one: the step's text, as in the trace")


class ImageCallItem(Out):
    """A step's image."""

    id: str
    type: Literal["image_generation_call"]
    status: Literal["in_progress", "generating", "completed", "failed"]
    result: str | None = Field(description="the PNG in base64: the bytes of `/v1/images/{image_id}`; null until then")
    output_format: Literal["png"]
    size: str | None = Field(None, description="such as `64x64`")


class OutputText(Out):
    """The text of the answer."""

    type: Literal["output_text"]
    text: str
    annotations: Nothing
    logprobs: Nothing


class MessageItem(Out):
    """The answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


OutputItem = Annotated[ReasoningItem | ImageCallItem | MessageItem, Field(discriminator="type")]


class InputTokensDetails(Out):
    """Nothing is cached."""

    cached_tokens: Literal[0]
    cache_write_tokens: Literal[0]


class OutputTokensDetails(Out):
    """How the output divides."""

    reasoning_tokens: int = Field(description="tokens of the steps, codes of images included")


class ResponseUsage(Out):
    """Tokens counted by the engine."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFailure(Out):
    """Why a response failed."""

    code: Literal["server_error"]
    message: str
    type: str = Field(description="the code of the trace's error")


class IncompleteDetails(Out):
    """Why a response has no complete answer."""

    reason: Literal["max_output_tokens"]


class ReasoningOut(Out):
    """Options of the steps."""

    effort: None
    summary: Literal["auto"] | None


class TextFormatOut(Out):
    """The format of the answer."""

    type: Literal["text"]


class TextOut(Out):
    """Options of the answer."""

    format: TextFormatOut
    verbosity: Literal["medium"]


class ResponseOut(Out):
    """A trace as a response."""

    id: str
    object: Literal["response"]
    created_at: int = Field(description="seconds since the epoch")
    completed_at: int | None = Field(description="null unless completed")
    status: Literal["queued", "in_progress", "completed", "incomplete", "cancelled", "failed"]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    metadata: dict[str, str] = Field(description="the request's, and the `trace_id`")
    background: bool
    previous_response_id: str | None
    temperature: float = Field(description="the value in use; 0 = greedy")
    top_p: float
    max_output_tokens: int | None
    user: str | None
    instructions: None
    reasoning: ReasoningOut
    text: TextOut
    tools: Nothing
    tool_choice: Literal["auto", "none"]
    parallel_tool_calls: bool
    max_tool_calls: None
    top_logprobs: Literal[0]
    truncation: Literal["disabled"]
    service_tier: Literal["default"]
    store: Literal[True]


class ResponseDeleted(Out):
    """A deleted response."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class InputTextOut(Out):
    """Text of the question."""

    type: Literal["input_text"]
    text: str


class InputImageOut(Out):
    """An image of the question."""

    type: Literal["input_image"]
    file_id: str
    image_url: None
    detail: Literal["auto"]


class InputItem(Out):
    """A message of the question."""

    id: str
    type: Literal["message"]
    role: Literal["user"]
    status: Literal["completed"]
    content: list[Annotated[InputTextOut | InputImageOut, Field(discriminator="type")]]


class InputItemList(Out):
    """A page of input items."""

    object: Literal["list"] = "list"
    data: list[InputItem]
    first_id: str | None
    last_id: str | None
    has_more: bool
