"""`omni-r1 data check`: the report of a local data set, without a server."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from app.cli.main import main
from tests.image_files import encoded, gradient

OWN = {"question": "How many stars?", "image": "images/1.png", "answer": 3}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as file:
        rows = [OWN, "{", {**OWN, "image": "images/2.png"}]
        file.writestr("q.jsonl", "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        file.writestr("images/1.png", encoded(gradient(), "PNG"))
    return tmp_path / "mine.zip"


def test_report_lists_counts_and_rejections(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(archive)]) == 0
    out = capsys.readouterr().out
    assert "mine.zip: 3 rows" in out
    assert " ".join(next(line for line in out.splitlines() if "perpo" in line).split()) == "perpo 1 usable"
    assert "q.jsonl:3  missing_picture: 'image': there is no image 'images/2.png'" in out
    assert "q.jsonl:1  How many stars?  (1 image)" in out


def test_method_without_rows_exits_with_1(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(archive), "--method", "pesft"]) == 1
    assert "3 rows rejected by pesft" in capsys.readouterr().out
    assert main(["data", "check", str(archive), "--method", "perpo"]) == 0


def test_json_and_rejections_are_complete(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rejections.jsonl"
    assert main(["data", "check", str(archive), "--method", "benchmark", "--json", "--rejections", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usable_for"] == {"pesft": 0, "perpo": 1, "zero": 0, "benchmark": 1}
    assert report["preview"][0]["images"] == [{"url": None, "token_ids": None}]
    assert [json.loads(line) for line in out.read_text().splitlines()] == report["rejected"]["first"]
    assert [one["row"] for one in report["rejected"]["first"]] == [2, 3]


def test_columns_and_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"ask": {"text": f"What is {number}?"}, "label": number} for number in range(5)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["data", "check", str(tmp_path / "q.jsonl"), "--method", "perpo"]
    assert main([*command, "--rows", "2", "--column", "question=ask.text", "--column", "answer=label"]) == 0
    out = capsys.readouterr().out
    assert "q.jsonl: the first 2 rows" in out
    assert "What is 1?" in out
    assert main(command) == 1
    assert main([*command, "--column", "question"]) == 2


@pytest.mark.parametrize("address", ["hf://lab/shapes", "https://huggingface.co/datasets/lab/shapes", "s3://lab/x"])
@pytest.mark.parametrize("command", [["data", "check"], ["train", "perpo", "--data"]])
def test_other_addresses_are_bad_input(command: list[str], address: str, capsys: pytest.CaptureFixture[str]) -> None:
    if (command[0], address[:2]) != ("train", "hf"):  # that one is for the server to judge
        assert main([*command, address]) == 2
        assert "hf://datasets/OWNER/NAME" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["missing.jsonl", "a.txt", "broken.zip", "empty"])
def test_other_files_are_bad_input(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4")
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
