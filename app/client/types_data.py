"""Typed dictionaries of data sets."""

from __future__ import annotations

from typing import Literal, TypedDict

from app.contract.words import DataMethod


class DataRejection(TypedDict):
    """Why some methods cannot use a row; `where` is its file and line."""

    where: str
    row: int
    code: str
    detail: str
    methods: list[DataMethod]


class DataRejected(TypedDict):
    """Rejected rows, the number of rejections by code, the first 20, and the URL of all."""

    rows: int
    reasons: dict[str, int]
    first: list[DataRejection]
    url: str


class DataImage(TypedDict):
    """An image of the preview: a URL, or the number of its token ids."""

    url: str | None
    token_ids: int | None


class DataStep(TypedDict):
    """A step of a trace."""

    text: str
    image: DataImage | None


class DataRow(TypedDict):
    """A row of the preview; long texts and lists of images are cut."""

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


class Dataset(TypedDict):
    """An uploaded data set and its check; a job names its `path`."""

    id: str
    path: str
    format: Literal["jsonl", "parquet", "zip"]
    bytes: int
    rows: int
    complete: bool
    method: DataMethod | None
    usable_for: dict[DataMethod, int]
    most_images: int
    rejected: DataRejected
    preview: list[DataRow]
