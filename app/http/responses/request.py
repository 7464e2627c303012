"""Bodies of `POST /v1/responses`, and the traces that they ask for.

Parameters that this server does not have accept only the value that changes nothing: anything else is an error that
names them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from app.contract.problems import Problem, field_problem
from app.contract.schemas import (
    MAX_IMAGES,
    MAX_QUESTION_CHARS,
    CheckpointText,
    ImageIn,
    In,
    NewTokens,
    SamplingIn,
    Temperature,
    TopP,
    TraceCreate,
    clean_text,
    plain_json,
)

PARTIAL_IMAGES = 3  # previews of each image, for responses that can be streamed
ID = "resp_"


def only(*values: Any, why: str = "") -> BeforeValidator:
    """Validator of a parameter that accepts only null and these values."""
    shown = " or ".join(json.dumps(value) for value in values)
    reason = (f"only {shown} is supported" if values else "this parameter is not supported") + why

    def check(value: Any) -> Any:
        if value is not None and value not in values:
            raise PydanticCustomError("unsupported_parameter", "{reason}", {"reason": reason})
        return value

    return BeforeValidator(check)


def _kind(value: Any) -> str:
    return "text" if isinstance(value, str) else "list"


Text = Annotated[str, Field(max_length=MAX_QUESTION_CHARS), AfterValidator(clean_text)]
Unsupported = Annotated[None, only()]
ShortText = Annotated[str, Field(max_length=512), AfterValidator(clean_text)]
Key = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(clean_text)]
ResponseMetadata = Annotated[dict[Key, ShortText], Field(max_length=16), AfterValidator(plain_json)]


class InputText(In):
    """Text of the question."""

    type: Literal["input_text"]
    text: Text


class InputImage(In):
    """An image of the question: a data URL, or the id of a stored image."""

    type: Literal["input_image"]
    image_url: str | None = Field(
        None, min_length=1, description="`data:image/…;base64,…`; no other scheme is supported or fetched"
    )
    file_id: str | None = Field(None, min_length=1, max_length=128, description="the `image_id` of a stored image")
    detail: Annotated[Literal["auto"] | None, only("auto")] = None

    @model_validator(mode="after")
    def _exactly_one(self) -> InputImage:
        if (self.image_url is None) == (self.file_id is None):
            raise ValueError("give exactly one of image_url and file_id")
        return self


Part = Annotated[InputText | InputImage, Field(discriminator="type")]
Content = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[Part], Tag("list"), Field(min_length=1, max_length=64)],
    Discriminator(_kind),
]


class InputMessage(In):
    """A message of the user; an item of `input_items` is one, too."""

    type: Annotated[Literal["message"], only("message")] = "message"
    role: Annotated[Literal["user"], only("user", why=": a model answers one question and knows no conversation")]
    content: Content
    id: ShortText | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class PlainText(In):
    """The only output format."""

    type: Literal["text"]


class TextOptions(In):
    """Options of the answer."""

    format: Annotated[PlainText | None, only({"type": "text"})] = None
    verbosity: Annotated[Literal["medium"] | None, only("medium")] = None


class ReasoningOptions(In):
    """Options of the steps, whose texts are always returned as summaries."""

    effort: Unsupported = None
    summary: Annotated[Literal["auto"] | None, only("auto")] = None


class StreamOptions(In):
    """Options of the stream."""

    include_obfuscation: Annotated[Literal[False] | None, only(False)] = None


class ResponseCreate(In):
    """Body of `POST /v1/responses`. Null is the same as an absent field."""

    model: CheckpointText | None = Field(
        None, min_length=1, max_length=200, description="the name of a checkpoint; default: the active one"
    )
    input: Annotated[
        Annotated[Text, Tag("text")] | Annotated[list[InputMessage], Tag("list"), Field(min_length=1, max_length=64)],
        Discriminator(_kind),
    ] = Field(description="the question: a text, or messages of the user with texts and images")
    previous_response_id: ShortText | None = Field(
        None, description="ask about the images of that response's question, unless `input` has images"
    )
    stream: bool | None = Field(None, description="server-sent events")
    background: bool | None = Field(None, description="answer at once, and go on without readers")
    temperature: Temperature | None = Field(None, description="0 = greedy; default: the checkpoint's")
    top_p: TopP | None = Field(None, description="default: the checkpoint's")
    max_output_tokens: NewTokens | None = Field(None, description="codes of images count; default: the remaining room")
    metadata: ResponseMetadata | None = Field(None, description="`trace_id` is set by the server")
    user: ShortText | None = Field(None, description="returned unchanged")
    parallel_tool_calls: bool | None = Field(None, description="without effect: there are no tools")
    tools: Annotated[list[Any] | None, only([])] = Field(None, max_length=0)
    tool_choice: Annotated[Literal["auto", "none"] | None, only("auto", "none")] = None
    include: Annotated[list[Any] | None, only([])] = Field(None, max_length=0)
    store: Annotated[Literal[True] | None, only(True, why=": a response stays until it is deleted")] = None
    truncation: Annotated[Literal["disabled"] | None, only("disabled")] = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    stream_options: StreamOptions | None = None
    service_tier: Annotated[Literal["auto", "default"] | None, only("auto", "default")] = None
    top_logprobs: Annotated[Literal[0] | None, only(0)] = None
    instructions: Annotated[None, only(why=": a model knows nothing but the question")] = None
    access_programs: Unsupported = None
    background_options: Unsupported = None
    context_management: Unsupported = None
    conversation: Unsupported = None
    image: Unsupported = None
    max_tool_calls: Unsupported = None
    moderation: Unsupported = None
    prompt: Unsupported = None
    prompt_cache_key: Unsupported = None
    prompt_cache_options: Unsupported = None
    prompt_cache_retention: Unsupported = None
    safety_identifier: Unsupported = None


@dataclass(frozen=True)
class Asked:
    """What a request asks for: a trace, the fields that responses repeat, and where its images are in the request."""

    trace: TraceCreate
    request: dict[str, Any]
    places: tuple[str, ...]  # of each image: the path of its part, or of the field that it is inherited by


def asked(body: ResponseCreate, inherited: Sequence[str]) -> Asked:
    """The trace that the request asks for.

    `inherited` are the ids of the previous response's images: they are used if the request has none. Raises `Problem`
    for a question that is empty, too long or has too many images.
    """
    images: list[ImageIn] = []
    places: list[str] = []
    texts: list[str] = []
    messages: list[list[dict[str, Any]]] = []
    for path, part in _parts(body, messages):
        if isinstance(part, InputText):
            texts.append(part.text)
            messages[-1].append({"type": "input_text", "text": part.text})
        else:
            messages[-1].append({"type": "input_image", "image": len(images)})
            images.append(ImageIn(image_id=part.file_id, data_url=part.image_url))
            places.append(path)
    if inherited and not images:
        messages.insert(0, [{"type": "input_image", "image": k} for k in range(len(inherited))])
        images = [ImageIn(image_id=image_id) for image_id in inherited]
        places = ["body.previous_response_id"] * len(images)
    question = "\n".join(texts)
    _check(question, len(images))
    streamed = bool(body.stream or body.background)
    trace = TraceCreate(
        question=question,
        images=images,
        checkpoint=body.model,
        sampling=SamplingIn(temperature=body.temperature, top_p=body.top_p, max_new_tokens=body.max_output_tokens),
        partial_images=PARTIAL_IMAGES if streamed else 0,
        metadata=dict(body.metadata or {}),
    )
    return Asked(trace, _repeated(body) | {"input": messages}, tuple(places))


def _parts(body: ResponseCreate, messages: list[list[dict[str, Any]]]) -> Iterator[tuple[str, InputText | InputImage]]:
    """Each part of the input with its path; opens a message in `messages` before the first part of each."""
    if isinstance(body.input, str):
        messages.append([])
        yield "body.input", InputText(type="input_text", text=body.input)
        return
    for i, message in enumerate(body.input):
        messages.append([])
        path = f"body.input.{i}.content"
        if isinstance(message.content, str):
            yield path, InputText(type="input_text", text=message.content)
            continue
        for j, part in enumerate(message.content):
            yield f"{path}.{j}", part


def _check(question: str, num_images: int) -> None:
    if not question.strip():
        raise field_problem("invalid", "body.input", "must have a text that is not empty")
    if len(question) > MAX_QUESTION_CHARS:
        raise field_problem("invalid", "body.input", f"must have at most {MAX_QUESTION_CHARS} characters")
    if num_images > MAX_IMAGES:
        raise field_problem("too_many_images", "body.input", f"must have at most {MAX_IMAGES} images")


def _repeated(body: ResponseCreate) -> dict[str, Any]:
    """The fields that the response repeats; the trace has the others."""
    return {
        "background": bool(body.background),
        "max_output_tokens": body.max_output_tokens,
        "metadata": dict(body.metadata or {}),
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning_summary": body.reasoning.summary if body.reasoning is not None else None,
        "tool_choice": body.tool_choice or "auto",
        "user": body.user,
    }


def input_items(trace_id: str, request: Mapping[str, Any], images: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a response's question, oldest first; images by id. Inherited ones are the first message."""

    def part(stored: Mapping[str, Any]) -> dict[str, Any]:
        if stored["type"] == "input_text":
            return {"type": "input_text", "text": stored["text"]}
        image_id = images[stored["image"]]["image_id"]
        return {"type": "input_image", "file_id": image_id, "image_url": None, "detail": "auto"}

    return [
        {
            "id": f"msg_{trace_id}_in{number}",
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": [part(stored) for stored in content],
        }
        for number, content in enumerate(request["input"])
    ]


_NAMES = {
    "body.question": "body.input",
    "body.checkpoint": "body.model",
    "body.sampling.max_new_tokens": "body.max_output_tokens",
    "body.images": "body.input",
}
_CODES = {
    "unknown_checkpoint": ("model_not_found", 404),
    "unknown_image": ("unknown_image", 404),
    "trace_not_found": ("response_not_found", 404),  # the previous one, deleted meanwhile
}


def in_terms_of(problem: Problem, places: Sequence[str]) -> Problem:
    """The problem of a trace in the words of the request: its paths, and 404 for unknown names and ids."""
    code, status = _CODES.get(problem.code, (problem.code, problem.status))
    if status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE:  # an image in a body of a supported type
        status = HTTPStatus.BAD_REQUEST
    errors = [{"path": _renamed(error["path"], places), "message": error["message"]} for error in problem.errors]
    detail = f"{errors[0]['path']}: {errors[0]['message']}" if errors else problem.detail
    renamed = Problem(code, detail, errors=errors, headers=problem.headers, members=problem.members)
    renamed.status = status
    return renamed


def _renamed(path: str, places: Sequence[str]) -> str:
    head, _, rest = path.removeprefix("body.images.").partition(".")
    if path.startswith("body.images.") and head.isdecimal() and int(head) < len(places):
        place = places[int(head)]
        field = {"image_id": ".file_id", "data_url": ".image_url"}.get(rest, "")
        return place if place.endswith("_id") else place + field
    return _NAMES.get(path, path)
