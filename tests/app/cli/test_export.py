"""`omni-r1 export` against a small canned server: selection, files, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli.main import main
from tests.app.canned import Canned

ROWS = b'{"Question": "?"}\n'


@pytest.fixture(autouse=True)
def files(canned: Canned) -> None:
    canned.answers |= {"POST /v1/exports": (200, ROWS), "GET /v1/traces/t1/export": (200, ROWS)}


def test_filters_select_what_is_saved(canned: Canned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rating", "-1", "--tag", "a b", "--slice", "natural", "--verdict", "wrong", "--checkpoint", "c"]
    assert main(["export", *options, "--status", "completed", "--q", "red", "-o", "bad.jsonl"]) == 0
    assert capsys.readouterr() == ("", "bad.jsonl: 18 bytes\n")
    assert (tmp_path / "bad.jsonl").read_bytes() == ROWS
    assert canned.body_of("POST /v1/exports") == {
        "format": "jsonl",
        "filter": {
            "rating": -1,
            "tag": "a b",
            "slice": "natural",
            "verdict": "wrong",
            "checkpoint": "c",
            "status": "completed",
            "q": "red",
        },
    }


def test_nothing_given_exports_all_traces(canned: Canned, tmp_path: Path) -> None:
    assert main(["export"]) == 0
    assert canned.body_of("POST /v1/exports") == {"format": "jsonl", "filter": {}}
    assert (tmp_path / "traces.jsonl").read_bytes() == ROWS


@pytest.mark.parametrize(("name", "format"), [("a.HTML", "html"), ("b.zip", "zip"), ("d", "jsonl")])
def test_format_follows_the_name(canned: Canned, name: str, format: str) -> None:
    assert main(["export", "t1", "t2", "-o", name]) == 0
    assert canned.body_of("POST /v1/exports") == {"format": format, "trace_ids": ["t1", "t2"]}


def test_one_trace_is_fetched_alone(canned: Canned) -> None:
    assert main(["export", "t1", "--format", "json"]) == 0
    assert ("GET", "/v1/traces/t1/export?format=json", b"") in canned.calls


def test_stdout_gets_the_bytes(canned: Canned, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["export", "-o", "-"]) == 0
    assert capfdbinary.readouterr() == (ROWS, b"")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_existing_file_needs_force(canned: Canned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text("mine")
    assert main(["export", "-o", "a.jsonl"]) == 2
    assert capsys.readouterr().err == "omni-r1: a.jsonl exists; choose another name, or use --force\n"
    assert canned.calls == []
    assert main(["export", "-o", "a.jsonl", "--force"]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == ROWS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["t1", "--tag", "x"], "give either ids or filters"),
        (["-o", "."], ". is a folder"),
        (["-o", "c.txt"], "c.txt: txt is not a format; use one of json, jsonl, zip, html, or --format"),
        (["-o", "nowhere/a.jsonl"], "nowhere is not a folder"),
        (["--format", "pdf"], "argument --format: invalid choice: 'pdf'"),
        (["--rating", "2"], "argument --rating: invalid choice: 2"),
    ],
)
def test_bad_options_of_export_exit_with_2(
    canned: Canned, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["export", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"omni-r1: {message}")
    assert canned.calls == []


def test_rejected_or_empty_export_leaves_no_file(
    canned: Canned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canned.answers["POST /v1/exports"] = (200, b"")
    assert main(["export"]) == 1
    assert capsys.readouterr().err == "omni-r1: no trace has what this format needs\n"
    problem = {"code": "trace_live", "detail": "trace t1 is running", "status": 409, "title": "x"}
    canned.answers["GET /v1/traces/t1/export"] = (409, json.dumps(problem).encode())
    assert main(["export", "t1"]) == 2
    assert capsys.readouterr().err == "omni-r1: trace t1 is running\n"
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
