"""A trace's log as the events of a response: a pure function, so that a replay gives the same numbers and bytes.

A step's text becomes a `reasoning` item, its image an `image_generation_call`, and the answer a `message`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.http.responses.request import ID

Event = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """Stands for the base64 of an image: a stored one by its id, or a preview by its URL path."""

    image_id: str | None = None
    preview: str | None = None


@dataclass(frozen=True)
class Ended:
    """What the row of an ended trace adds to its log: when it ended, and the tokens of its complete steps."""

    finished_at: str | None
    step_tokens: int


class Translation:
    """Takes the log's events in order, from the first one. `response` is the response so far."""

    def __init__(self, trace: Mapping[str, Any], request: Mapping[str, Any]) -> None:
        """`trace` is the trace's JSON, `request` what `asked` stored of the request."""
        self._id: str = trace["id"]
        self._next = 0
        self._open: dict[str, Any] | None = None  # the last item of the output, until it is done
        self._held = ""  # white space at the end of the answer so far: an answer has none around it
        self._output: list[dict[str, Any]] = []
        self._response = _begun(trace, request)

    @property
    def response(self) -> dict[str, Any]:
        """A snapshot; images are :class:`Picture`."""
        return self._response | {"output": copy.deepcopy(self._output)}

    def take(self, type_: str, data: Mapping[str, Any], ended: Ended | None = None) -> Iterator[Event]:
        """The events that one event of the log becomes, often none; `ended` with a terminal one."""
        for event in self._translated(type_, data, ended):
            yield {"type": event.pop("type"), "sequence_number": self._next, **event}
            self._next += 1

    def _translated(self, type_: str, data: Mapping[str, Any], ended: Ended | None) -> Iterator[Event]:
        match type_:
            case "trace.queued" if self._next == 0:
                yield self._whole("response.created")
                yield self._whole("response.queued")
            case "trace.started":
                self._response["status"] = "in_progress"
                yield self._whole("response.in_progress")
            case "text.delta":
                yield from self._text(data["text"])
            case "image.started":
                yield from self._close("completed")
                yield from self._image()
            case "image.partial" if data["url"] is not None:
                preview = Picture(preview=data["url"])
                shown = {"partial_image_index": data["index"], "partial_image_b64": preview, "output_format": "png"}
                yield self._of_item("response.image_generation_call.partial_image", **shown)
            case "image.completed" if self._open is not None:
                self._open |= {"result": Picture(data["image_id"]), "size": f"{data['width']}x{data['height']}"}
                yield self._of_item("response.image_generation_call.completed")
                yield from self._close("completed")
            case "step.completed":
                yield from self._close("completed")
            case "answer.delta":
                yield from self._answer(data["text"])
            case "trace.completed":
                yield from self._completed(data, ended)
            case "trace.cancelled":
                yield from self._close("incomplete")
                self._response["status"] = "cancelled"
                yield self._whole("response.incomplete")
            case "trace.failed":
                yield from self._close("incomplete")
                error = data["error"]
                failure = {"code": "server_error", "message": error["detail"], "type": error["code"]}
                self._response |= {"status": "failed", "error": failure}
                yield self._whole("response.failed")

    def _completed(self, data: Mapping[str, Any], ended: Ended | None) -> Iterator[Event]:
        if data.get("unmarked") and data["answer"]:
            yield from self._answer(data["answer"])
        whole = data["finish_reason"] == "stop"
        status = "completed" if whole else "incomplete"
        answered = self._open is not None and self._open["type"] == "message"
        yield from self._close(status)
        self._response |= {"status": status, "usage": _usage(data["usage"], ended, answered=answered)}
        if not whole:
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        elif ended is not None and ended.finished_at is not None:
            self._response["completed_at"] = _seconds(ended.finished_at)
        yield self._whole(f"response.{status}")

    # ---- items

    def _text(self, text: str) -> Iterator[Event]:
        if self._open is None or self._open["type"] != "reasoning":
            yield from self._close("completed")
            yield from self._add({"id": self._item_id("rs"), "type": "reasoning", "summary": []})
            part = {"type": "summary_text", "text": ""}
            yield self._of_item("response.reasoning_summary_part.added", summary_index=0, part=dict(part))
            self._output[-1]["summary"].append(part)
        self._output[-1]["summary"][0]["text"] += text
        yield self._of_item("response.reasoning_summary_text.delta", summary_index=0, delta=text)

    def _image(self) -> Iterator[Event]:
        item = {"id": self._item_id("ig"), "type": "image_generation_call", "result": None, "output_format": "png"}
        yield from self._add(item)
        yield self._of_item("response.image_generation_call.in_progress")
        yield self._of_item("response.image_generation_call.generating")
        self._output[-1]["status"] = "generating"

    def _answer(self, text: str) -> Iterator[Event]:
        is_open = self._open is not None and self._open["type"] == "message"
        text = self._held + text if is_open else text.lstrip()
        shown = text.rstrip()
        self._held = text[len(shown) :]
        if not shown:
            return
        if not is_open:
            yield from self._close("completed")
            yield from self._add({"id": self._item_id("msg"), "type": "message", "role": "assistant", "content": []})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield self._of_item("response.content_part.added", content_index=0, part=copy.deepcopy(part))
            self._output[-1]["content"].append(part)
        self._output[-1]["content"][0]["text"] += shown
        yield self._of_item("response.output_text.delta", content_index=0, delta=shown, logprobs=[])

    def _add(self, item: dict[str, Any]) -> Iterator[Event]:
        item["status"] = "in_progress"
        self._open = item
        self._output.append(item)
        yield self._item_event("response.output_item.added")

    def _close(self, status: str) -> Iterator[Event]:
        """End the open item; `status` is that of a text, an image without its pixels has failed."""
        item = self._open
        if item is None:
            return
        match item["type"]:
            case "reasoning":
                part, at = dict(item["summary"][0]), {"summary_index": 0}
                yield self._of_item("response.reasoning_summary_text.done", **at, text=part["text"])
                more = {"status": status} if status == "incomplete" else {}
                yield self._of_item("response.reasoning_summary_part.done", **at, part=part, **more)
            case "message":
                part, at = copy.deepcopy(item["content"][0]), {"content_index": 0}
                yield self._of_item("response.output_text.done", **at, text=part["text"], logprobs=[])
                yield self._of_item("response.content_part.done", **at, part=part)
            case _:
                status = "failed" if item["result"] is None else "completed"
        item["status"] = status
        yield self._item_event("response.output_item.done")
        self._open = None

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self._id}_{len(self._output)}"

    # ---- events

    def _whole(self, type_: str) -> Event:
        return {"type": type_, "response": self.response}

    def _item_event(self, type_: str) -> Event:
        return {"type": type_, "output_index": len(self._output) - 1, "item": copy.deepcopy(self._output[-1])}

    def _of_item(self, type_: str, **fields: Any) -> Event:
        index = len(self._output) - 1
        return {"type": type_, "item_id": self._output[index]["id"], "output_index": index, **fields}


def translated(
    trace: Mapping[str, Any], request: Mapping[str, Any], log: Iterable[tuple[str, Mapping[str, Any]]], ended: Ended
) -> dict[str, Any]:
    """The response after a log of (type, data); images are :class:`Picture`."""
    translation = Translation(trace, request)
    for type_, data in log:
        for _ in translation.take(type_, data, ended):
            pass
    return translation.response


def pictures(value: Any) -> Iterator[Picture]:
    """The images that an event or a response refers to."""
    if isinstance(value, Picture):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from pictures(inner)


def filled(value: Any, images: Mapping[Picture, str | None]) -> Any:
    """The value with its images in base64."""
    if isinstance(value, Picture):
        return images[value]
    if isinstance(value, dict):
        return {key: filled(inner, images) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, images) for inner in value]
    return value


def _begun(trace: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """A response without output, as it is when it is created."""
    return {
        "id": f"{ID}{trace['id']}",
        "object": "response",
        "created_at": _seconds(trace["created_at"]),
        "completed_at": None,
        "status": "queued",
        "error": None,
        "incomplete_details": None,
        "model": trace["checkpoint"],
        "output": [],
        "usage": None,
        "metadata": request["metadata"] | {"trace_id": trace["id"]},
        "background": request["background"],
        "previous_response_id": request["previous_response_id"],
        "temperature": trace["sampling"]["temperature"],
        "top_p": trace["sampling"]["top_p"],
        "max_output_tokens": request["max_output_tokens"],
        "user": request["user"],
        "instructions": None,
        "reasoning": {"effort": None, "summary": request["reasoning_summary"]},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tools": [],
        "tool_choice": request["tool_choice"],
        "parallel_tool_calls": request["parallel_tool_calls"],
        "max_tool_calls": None,
        "top_logprobs": 0,
        "truncation": "disabled",
        "service_tier": "default",
        "store": True,
    }


def _usage(usage: Mapping[str, Any], ended: Ended | None, *, answered: bool) -> dict[str, Any]:
    """Without an answer all output is reasoning, also what follows the last complete step."""
    given, made = usage["prompt_tokens"], usage["completion_tokens"]
    steps = made if not answered or ended is None else min(made, ended.step_tokens)
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": steps},
        "total_tokens": given + made,
    }


def _seconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp())
