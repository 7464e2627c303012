"""Uploads of data sets: stored and checked for every method, and the faults of files."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.client import BadInput, Client
from app.jobs import datasets
from tests.app.conftest import Server
from tests.image_files import encoded, gradient

IMAGE = encoded(gradient(), "PNG")
PNG = base64.b64encode(IMAGE).decode()
OWN = {"question": "How many?", "image": PNG, "answer": 3}
NONE = {"pesft": 0, "perpo": 0, "zero": 0, "benchmark": 0}
KINDS = {"jsonl": "application/x-ndjson", "parquet": "application/vnd.apache.parquet", "zip": "application/zip"}


def jsonl(*rows: Any) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def parquet(**columns: list[Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


async def upload(server: Server, data: bytes, method: str | None = None, kind: str = "jsonl") -> httpx.Response:
    params = {} if method is None else {"method": method}
    return await server.client.post("/v1/datasets", content=data, params=params, headers={"Content-Type": KINDS[kind]})


OWN_FILES = {
    "jsonl": jsonl(OWN, OWN),
    "parquet": parquet(question=["How many?"] * 2, answer=["3"] * 2, image=[{"bytes": IMAGE, "path": "1.png"}] * 2),
    "zip": zipped(**{"set/q.jsonl": jsonl(*[{**OWN, "image": "i/1.png"}] * 2), "set/i/1.png": IMAGE}),
}


@pytest.mark.parametrize("kind", OWN_FILES)
async def test_own_questions_are_usable_in_every_file(server: Server, kind: str) -> None:
    answer = await upload(server, OWN_FILES[kind], "perpo", kind)
    assert answer.status_code == 201, answer.text
    report = answer.json()
    assert (report["format"], report["rows"], report["method"]) == (kind, 2, "perpo")
    assert report["usable_for"] == {**NONE, "perpo": 2, "benchmark": 2}
    assert report["rejected"]["rows"] == 0
    assert (server.home / report["path"]).exists()
    url = report["preview"][0]["images"][0]["url"]
    image = await server.client.get(url)
    assert (image.status_code, image.headers["content-type"]) == (200, "image/png")
    from training.data.questions import Question, read_questions
    from training.spec.spec import JsonlData

    found = list(read_questions(JsonlData(path=str(server.home / report["path"])), 16))
    assert [isinstance(item, Question) for item in found] == [True, True]
    refused = await upload(server, OWN_FILES[kind], "pesft", kind)
    assert (refused.status_code, refused.json()["code"]) == (422, "unusable_dataset")
    assert "empty_reasoning" in refused.json()["errors"][0]["message"]


async def test_broken_line_among_good_ones_is_listed(server: Server) -> None:
    report = (await upload(server, jsonl(OWN, "{", OWN, {**OWN, "image": PNG[:-80]}))).json()
    assert report["usable_for"] == {**NONE, "perpo": 2, "benchmark": 2}
    codes = [(one["row"], one["code"]) for one in report["rejected"]["first"]]
    assert (2, "broken_line") in codes
    assert (4, "broken_picture") in codes
    lines = (await server.client.get(report["rejected"]["url"])).text.splitlines()
    assert [json.loads(line) for line in lines] == report["rejected"]["first"]
    only = (await server.client.get(f"/v1/datasets/{report['id']}", params={"method": "perpo"})).json()
    assert only["rejected"]["reasons"] == {"broken_line": 1, "broken_picture": 1}
    assert only["rejected"]["rows"] == 2


async def test_without_method_anything_is_stored(server: Server) -> None:
    report = (await upload(server, jsonl({"a": 1}))).json()
    assert (report["usable_for"], report["preview"]) == (NONE, [])
    assert report["rejected"]["reasons"] == {"empty_question": 1}
    refused = await upload(server, jsonl({"a": 1}), "benchmark")
    assert (refused.status_code, refused.json()["code"]) == (422, "unusable_dataset")


async def test_report_survives_the_cache(server: Server) -> None:
    report = (await upload(server, jsonl(OWN, "{"))).json()
    for file in (server.home / datasets.CHECKS / report["id"]).iterdir():
        file.unlink()
    address = f"/v1/datasets/{report['id']}"
    assert (await server.client.get(address)).json() == report
    assert (await server.client.get(report["preview"][0]["images"][0]["url"])).status_code == 200


@pytest.mark.parametrize(
    "path", ["0" * 32, "x", f"{'0' * 32}/rejections", f"{'0' * 32}/images/1-question-1.png", "..%2fjobs/images/a.png"]
)
async def test_unknown_data_sets_are_404(server: Server, path: str) -> None:
    assert (await server.client.get(f"/v1/datasets/{path}")).status_code == 404


async def test_other_files_of_a_check_stay_private(server: Server) -> None:
    report = (await upload(server, jsonl(OWN))).json()
    for name in ("report.json", "9-question-1.png", "..%2f..%2fserver-id"):
        assert (await server.client.get(f"/v1/datasets/{report['id']}/images/{name}")).status_code == 404


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", "jsonl", "empty"),
        (b"\n\n", "jsonl", "empty"),
        (parquet(question=[]), "parquet", "empty"),
        (json.dumps(OWN).encode("utf-16"), "jsonl", "UTF-16"),
        (b"question,answer\n1,2\n", "jsonl", "line 1: no JSON"),
        (b"PAR1 and nothing else", "parquet", "unreadable"),
        (OWN_FILES["parquet"][:-100], "parquet", "unreadable"),
        (OWN_FILES["zip"][:-40], "zip", "no end"),
        (zipped(**{"../q.jsonl": jsonl(OWN)}), "zip", "leaves its folder"),
        (zipped(**{"/q.jsonl": jsonl(OWN)}), "zip", "leaves its folder"),
        (zipped(**{"q.csv": b"a,b"}), "zip", "no file that ends in"),
        (zipped(**{f"{i}.png": b"" for i in range(10_001)}), "zip", "more than 10,000 entries"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_broken_files_are_rejected(server: Server, data: bytes, kind: str, words: str) -> None:
    answer = await upload(server, data, kind=kind)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), answer.text
    assert words in answer.json()["detail"]
    assert str(server.home) not in answer.text
    assert not [path for path in server.home.rglob("*") if path.name.endswith((".jsonl", ".parquet", ".png"))]


async def test_zip_bomb_is_rejected(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.archives.MAX_UNPACKED_BYTES", 1_000_000)
    answer = await upload(server, zipped(**{"q.jsonl": jsonl(OWN), "big.png": bytes(9_000_000)}), kind="zip")
    assert answer.status_code == 422
    assert "unpacks to more than" in answer.json()["detail"]
    assert not list((server.home / "tmp").rglob("big.png"))


async def test_nested_lists_reject_their_rows(server: Server) -> None:
    data = parquet(question=["?", "?"], answer=["a", "a"], images=[[[["x"]]], None])
    report = (await upload(server, data, "benchmark", "parquet")).json()
    assert report["usable_for"]["benchmark"] == 1
    assert [(one["row"], one["code"]) for one in report["rejected"]["first"]] == [(1, "broken_picture")]


async def test_crashed_check_is_no_server_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.sys, "executable", "/bin/false")
    answer = await upload(server, jsonl(OWN))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert "cannot be checked" in answer.json()["detail"]


async def test_full_disk_is_named(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "full"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(datasets.sys, "executable", str(script))
    answer = await upload(server, jsonl(OWN))
    assert (answer.status_code, answer.json()["code"]) == (507, "disk_full")


async def test_unknown_method_is_rejected(server: Server) -> None:
    answer = await upload(server, jsonl(OWN), "pipeline")
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "query.method")


async def test_client_reads_checks_and_rejections(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "mine.zip"
    path.write_bytes(OWN_FILES["zip"])

    def work() -> None:
        with Client(f"http://127.0.0.1:{server.port}") as client:
            report = client.upload_dataset(path, method="perpo")
            assert report["format"] == "zip"
            assert client.dataset(report["id"], method="perpo") == report
            assert [one["code"] for one in client.dataset_rejections(report["id"])] == ["empty_reasoning"] * 2
            with pytest.raises(BadInput, match="pesft can use none"):
                client.upload_dataset(path, method="pesft")

    await asyncio.to_thread(work)
