"""JSON of curation: ratings, tags and notes of traces, and exports of traces."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from app.contract.schemas import CHECKPOINT_NAME_LENGTH, CheckpointText, In, Rating, clean_text
from app.contract.schemas_branches import TRACE
from app.contract.words import ExportFormat, Slice, Status, VerdictWord

MAX_TAGS = 32
MAX_TAG_CHARS = 32
MAX_NOTE_CHARS = 2_000
MAX_EXPORT_IDS = 10_000
MAX_HTML_TRACES = 20


def clean_tag(value: str) -> str:
    """Validator: a tag without outer white space; not empty, no control or invisible characters."""
    value = value.strip()
    if not value:
        raise ValueError("must not be empty")
    if not value.isprintable():
        raise ValueError("must not contain control or invisible characters")
    return value


def _set(values: list[str]) -> list[str]:
    """Without repetitions."""
    return list(dict.fromkeys(values))


Tag = Annotated[str, Field(min_length=1, max_length=MAX_TAG_CHARS), AfterValidator(clean_tag)]


class TraceUpdate(In):
    """Body of `PATCH /v1/traces/{id}`; absent fields stay unchanged."""

    rating: Rating | None = Field(None, description="1 good, -1 bad, 0 neither; null removes the rating")
    tags: Annotated[list[Tag], Field(max_length=MAX_TAGS), AfterValidator(_set)] = Field(
        default_factory=list, description="all tags of the trace, in place of its current ones"
    )
    note: Annotated[str, Field(max_length=MAX_NOTE_CHARS), AfterValidator(clean_text)] | None = Field(
        None, description="null or an empty text removes the note"
    )


class TraceFilter(In):
    """The filters of `GET /v1/traces`; all given ones must hold."""

    status: Status | None = None
    checkpoint: CheckpointText | None = Field(None, min_length=1, max_length=CHECKPOINT_NAME_LENGTH)
    slice: Slice | None = None
    verdict: VerdictWord | None = None
    rating: Rating | None = None
    tag: Tag | None = None
    parent: TRACE | None = None
    group: TRACE | None = None
    q: Annotated[str, Field(max_length=200), AfterValidator(clean_text)] | None = Field(
        None, description="text in question or answer"
    )


class ExportCreate(In):
    """Body of `POST /v1/exports`."""

    trace_ids: list[TRACE] | None = Field(None, min_length=1, max_length=MAX_EXPORT_IDS)
    filter: TraceFilter | None = Field(None, description="`{}` selects all traces")
    format: ExportFormat

    @model_validator(mode="after")
    def _one_selection(self) -> ExportCreate:
        if (self.trace_ids is None) == (self.filter is None):
            raise ValueError("give exactly one of trace_ids and filter")
        return self
