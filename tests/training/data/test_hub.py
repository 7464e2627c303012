"""Data sets on the hub: addresses, files fetched when they are needed, commits that stay."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.image_files import encoded, gradient
from tests.training.data.hub_server import HubServer
from training.data import hub as hub_data
from training.data.check import check_data
from training.data.hub import HubAddress, pinned, pins_of, with_pins
from training.data.questions import Question, read_questions
from training.data.rows import DataError, Rejection, Row, read_rows
from training.home_paths import located, record
from training.spec.spec import JsonlData

ADDRESS = "hf://datasets/lab/shapes"


def rows_of(*names: str) -> bytes:
    return b"".join(json.dumps({"question": f"What is {name}?", "answer": name}).encode() + b"\n" for name in names)


def table_of(*names: str) -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    picture = {"bytes": encoded(gradient(8, 8), "PNG"), "path": None}
    rows = [{"meta": {"query": f"What is {name}?"}, "picture": picture, "label": name} for name in names]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with one data set of three shards, and an empty cache."""
    server = HubServer()
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    server.push(
        {
            "README.md": b"shapes",
            "data/test-0.jsonl": rows_of("t"),
            "data/train-0.jsonl": rows_of("a", "b"),
            "data/train-1.jsonl": rows_of("c"),
        }
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def answers(path: str, **options: Any) -> list[str]:
    return [row.data["answer"] for row in read_rows(path, **options) if isinstance(row, Row)]


@pytest.mark.parametrize(
    ("text", "revision", "path"),
    [
        (ADDRESS, None, ""),
        (f"{ADDRESS}/", None, ""),
        (f"{ADDRESS}@v1", "v1", ""),
        (f"{ADDRESS}@refs/convert/parquet/default", "refs/convert/parquet", "default"),
        (f"{ADDRESS}@refs%2Fpr%2F3/a.jsonl", "refs/pr/3", "a.jsonl"),
        (f"{ADDRESS}/data/train-*.parquet", None, "data/train-*.parquet"),
    ],
)
def test_address_is_read(text: str, revision: str | None, path: str) -> None:
    address = HubAddress.parse(text)
    assert (address.repo, address.revision, address.path) == ("lab/shapes", revision, path)
    assert HubAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["hf://", "hf://lab/shapes", "hf://datasets/lab", "hf://datasets/../../etc", "hf://models/a/b"]
)
def test_other_addresses_are_rejected(text: str) -> None:
    with pytest.raises(DataError, match="no address of a data set"):
        HubAddress.parse(text)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", ["t", "a", "b", "c"]),
        ("/data", ["t", "a", "b", "c"]),
        ("/data/train-*", ["a", "b", "c"]),
        ("/data/train-1.jsonl", ["c"]),
        ("@refs/convert/parquet/data/test-0.jsonl", ["t"]),
    ],
)
def test_rows_are_those_of_the_path(hub: HubServer, path: str, found: list[str]) -> None:
    assert answers(ADDRESS + path) == found


def test_files_are_fetched_when_they_are_needed(hub: HubServer) -> None:
    wanted = list(islice(read_questions(JsonlData(path=f"{ADDRESS}/data/train-*")), 2))
    assert [one.answer for one in wanted if isinstance(one, Question)] == ["a", "b"]
    assert hub.fetched == ["data/train-0.jsonl"]
    assert answers(f"{ADDRESS}/data/train-*") == ["a", "b", "c"]
    assert hub.fetched == ["data/train-0.jsonl", "data/train-1.jsonl"]  # the first came from the cache


def test_commit_stays_when_the_hub_changes(hub: HubServer) -> None:
    address = pinned(f"{ADDRESS}/data")
    assert pinned(address) == address
    hub.push({"data/train-0.jsonl": rows_of("new")})
    assert answers(address) == ["t", "a", "b", "c"]
    assert answers(f"{ADDRESS}/data") == ["new"]


def test_spec_keeps_its_commits(hub: HubServer) -> None:
    part = {"source": "jsonl", "path": f"{ADDRESS}/data"}
    spec = {"data": {"pesft": part, "perpo": {"source": "unitasks"}, "zero": None}}
    pins = pins_of(spec, {})
    assert with_pins(spec, pins)["data"]["pesft"]["path"] == f"{ADDRESS}@{hub.commits[0]}/data"
    assert spec["data"]["pesft"] == part
    hub.push({"data/train-0.jsonl": rows_of("new")})
    assert pins_of({"data": part}, pins) == pins
    assert pins_of({"data": {"source": "jsonl", "path": "mine.jsonl"}}, {}) == {}


def test_columns_have_our_names(hub: HubServer) -> None:
    hub.push({"a.parquet": table_of("a", "b")})
    columns = {"question": "meta.query", "image": "picture", "answer": "label"}
    found = list(read_questions(JsonlData(path=ADDRESS, columns=columns), 8))
    assert [(one.text, one.answer, len(one.images)) for one in found if isinstance(one, Question)] == [
        ("What is a?", "a", 1),
        ("What is b?", "b", 1),
    ]
    lacking = list(read_questions(JsonlData(path=ADDRESS, columns={**columns, "question": "meta.text"})))
    assert [one.code for one in lacking if isinstance(one, Rejection)] == ["missing_column"] * 2
    assert "no column 'meta.text' for 'question'; the row has meta, picture, label" in str(lacking[0])
    bare = list(read_questions(JsonlData(path=ADDRESS, columns={**columns, "image": "photo"})))
    assert [len(one.images) for one in bare if isinstance(one, Question)] == [0, 0]
    report = check_data(ADDRESS, columns=columns, most=1)
    assert (report.rows, report.usable["perpo"], report.complete) == (1, 1, False)


@pytest.mark.parametrize(
    ("address", "why"),
    [(f"{ADDRESS}@none", "404"), ("hf://datasets/lab/other", "404"), (f"{ADDRESS}/images", "has no file that ends in")],
)
def test_missing_data_is_named(hub: HubServer, address: str, why: str) -> None:
    with pytest.raises(DataError, match=rf"^{re.escape(address)} .*{why}") as caught:
        answers(address)
    assert "\n" not in str(caught.value)


def test_silent_hub_ends_the_wait(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_data, "_SECONDS", 0.2)
    hub.silent = True
    with pytest.raises(DataError, match="cannot be read from the hub"):
        pinned(ADDRESS)


def test_address_is_no_path_of_the_home(tmp_path: Path) -> None:
    spec = {"data": {"source": "jsonl", "path": ADDRESS}}
    assert located(spec, tmp_path / "jobs" / "job_1") == spec
    assert record(spec, tmp_path) == spec
