"""`omni-r1 why` against a small canned server: tables, JSON, remarks, exit codes."""

from __future__ import annotations

import json

import pytest

from app.cli.main import main
from tests.app.canned import RELIANCE, Canned, effect, group


def effects(canned: Canned, *found: dict[str, object], skipped: tuple[dict[str, object], ...] = ()) -> None:
    canned.answers["GET /v1/groups/g1"] = (200, group("red") | {"effects": list(found), "skipped": list(skipped)})


def test_why_prints_the_reliance_on_each_image(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "t1"]) == 0
    assert capsys.readouterr().out == "image     reliance (nats)\nquestion  -0.00\nstep 1    +12.36\n"
    assert not any("interventions" in path for _, path, _ in canned.calls)


def test_why_prints_what_replacements_change(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    effects(
        canned,
        effect(1, "previous", "bl\x1bue", later=2),
        effect(1, "blank", None, later=1),
        effect(2, "previous", "red"),
        effect(2, "blank", None, later=None),
        skipped=({"step": 2, "with": "reference", "reason": "only traces of a task have reference images"},),
    )
    assert main(["why", "t1", "--with", "previous", "--with", "blank", "--steps", "1", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.split("\n\n")[1] == (
        "image   replaced by  answer                     later images\n"
        "step 1  previous     red -> blue                2 differ\n"
        "step 1  blank        red -> none                1 differs\n"
        "step 2  previous     red (same)                 same\n"
        "step 2  blank        red -> (did not complete)\n"
        "2 of 4 replacements change the answer.\n"
    )
    assert "skipped reference at step 2: only traces of a task have reference images" in err
    assert canned.body_of("POST /v1/traces/t1/interventions") == {"with": ["previous", "blank"], "steps": [1, 2]}


def test_why_prints_both_as_json(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    effects(canned, effect(1, "previous", "blue"))
    assert main(["why", "t1", "--with", "previous", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["reliance"] == RELIANCE
    assert document["interventions"]["effects"][0]["answer_after"] == "blue"
    assert main(["why", "t1", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["reliance"]


def test_traces_without_images_say_so(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answers["POST /v1/traces/t1/reliance"] = (200, RELIANCE | {"images": []})
    effects(canned)
    assert main(["why", "t1", "--with", "previous"]) == 0
    assert capsys.readouterr().out == "The trace has no images.\n\nNo image could be replaced.\n"


@pytest.mark.parametrize("wrong", [["--with", "swap"], ["--steps", "0"], ["--steps"], ["--with"], ["--steps", "1"]])
def test_wrong_options_exit_with_2(canned: Canned, wrong: list[str]) -> None:
    assert main(["why", "t1", *wrong]) == 2
    assert canned.calls == []


def test_errors_of_the_server_are_one_line(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"type": "urn:omni-r1:problem:no_answer", "status": 409, "code": "no_answer", "detail": "no answer yet"}
    canned.answers["POST /v1/traces/t1/reliance"] = (409, problem)
    assert main(["why", "t1"]) == 2
    assert capsys.readouterr().err == "omni-r1: no answer yet\n"
