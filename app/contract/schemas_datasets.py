"""The JSON of `/v1/datasets`. Shapes only, like `app.contract.schemas`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.contract.schemas import Out
from app.contract.words import DataMethod


class DataUsable(Out):
    """Number of usable rows by method."""

    pesft: int
    perpo: int
    zero: int
    benchmark: int


class DataRejection(Out):
    """Why some methods cannot use a row."""

    where: str = Field(description="file and line, or row of a table")
    row: int = Field(description="the line or row, from 1")
    code: str = Field(description="such as empty_reasoning or broken_picture")
    detail: str
    methods: list[DataMethod] = Field(description="the methods that reject the row")


class DataRejected(Out):
    """The rows that the chosen method, or any method, rejects."""

    rows: int
    reasons: dict[str, int] = Field(description="number of rejections by code")
    first: list[DataRejection] = Field(description="the first 20")
    url: str = Field(description="all of them, one JSON object per line")


class DataImage(Out):
    """An image of the preview, as a model sees it, or the number of its token ids."""

    url: str | None = None
    token_ids: int | None = None


class DataStep(Out):
    """A step of a trace."""

    text: str
    image: DataImage | None


class DataRow(Out):
    """A row of the preview; long texts are cut, and of many images the first 8 are listed."""

    where: str
    question: str
    images: list[DataImage]
    images_total: int
    steps: list[DataStep]
    steps_total: int
    step_images_total: int
    answer: str
    choices: list[str]
    slice: str | None
    usable_for: list[DataMethod]


class DatasetOut(Out):
    """A stored data set and its check; `path` is valid as a job's `data.path`."""

    id: str
    path: str
    format: Literal["jsonl", "parquet", "zip"]
    bytes: int
    rows: int
    complete: bool = Field(description="false if the time was up before the last row; the counts end there")
    method: DataMethod | None = Field(description="the method that `rejected` is about; null for all")
    usable_for: DataUsable
    most_images: int = Field(description="of one question")
    rejected: DataRejected
    preview: list[DataRow] = Field(description="the first rows that some method can use, at most 5")
