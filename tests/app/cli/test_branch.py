"""`omni-r1 branch`, and samples of `ask`, against a small canned server: output, files, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli.main import main
from tests.app.canned import Canned, finished, group

GROUP = (201, {"data": [{"id": "t1", "group_id": "g1"}, {"id": "b1", "group_id": "g1"}]})
SAMPLES = (201, {"id": "t1", "status": "queued", "group_id": "g1"})


def test_branch_shows_what_it_keeps_and_saves_images(
    canned: Canned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canned.answers["GET /v1/traces/b1"] = (200, finished())
    assert main(["branch", "t1", "--after", "2"]) == 0
    out, err = capsys.readouterr()
    assert out == (
        "1  I box it. (kept) [trace-b1/step-1.png]\n"
        "2  I look again. (edited)\n"  # without the escape character
        "1  I box it.[31m [trace-b1/step-1.png]\n"
        "Answer: red\n"
    )
    assert "the answer is right, 1 of 1 drawings right" in err
    assert (tmp_path / "trace-b1" / "step-1.png").read_bytes() == b"PNG of step 1"
    assert json.loads((tmp_path / "trace-b1" / "trace.json").read_text())["answer"] == "red"
    assert canned.body_of("POST /v1/traces/t1/branches") == {"after_step": 2, "mode": "auto", "background": True}


def test_branch_passes_on_its_options(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    edits = ["--text", "2=a=b", "--image", "2=blank", "--image", "1=picture.png", "--text", "3="]
    options = ["--then", "Now", "--seed", "7", "--temperature", "0.5", "--checkpoint", "c", "--quiet"]
    assert main(["branch", "t1", "--after", "3", *edits, *options]) == 0
    assert capsys.readouterr().out == "blue\n"
    assert ("POST", "/v1/images") in [(method, path) for method, path, _ in canned.calls]
    assert canned.body_of("POST /v1/traces/t1/branches") == {
        "after_step": 3,
        "edits": [
            {"step": 1, "image": {"image_id": "img-q"}},
            {"step": 2, "text": "a=b", "image": {"use": "blank"}},
            {"step": 3, "text": ""},
        ],
        "then_text": "Now",
        "checkpoint": "c",
        "mode": "auto",
        "sampling": {"temperature": 0.5, "seed": 7},
        "background": True,
    }


def test_branch_asks_for_the_answer(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["branch", "t1", "--after", "0", "--answer", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "b1"
    assert canned.body_of("POST /v1/traces/t1/branches")["then"] == "answer"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--after", "1", "--text", "It is red."], "--text expects STEP=TEXT, e.g. 2=It is red., not 'It is red.'"),
        (["--after", "1", "--image", "x=blank"], "--image expects STEP=IMAGE, e.g. 2=blank, not 'x=blank'"),
        (["--after", "1", "--text=-1=a"], "--text expects STEP=TEXT, e.g. 2=It is red., not '-1=a'"),
        (["--after", "1", "--text", "1=a", "--text", "1=b"], "--text is given twice for step 1"),
        (["--after", "1", "--image", "1=none.png"], "cannot read none.png: No such file or directory"),
        (["--after", "1", "--image", "1="], "--image expects STEP=IMAGE, e.g. 2=blank, not '1='"),
        (["--after", "1", "--text", "0=a"], "--text expects STEP=TEXT, e.g. 2=It is red., not '0=a'"),
        (["--after", "1", "--text", "2=a"], "--text is for step 2, but --after 1 keeps only steps 1 to 1"),
        (["--after", "0", "--image", "1=blank"], "--image is for step 1, but --after 0 keeps no steps"),
        ([], "the following arguments are required: --after (see omni-r1 branch --help)"),
    ],
)
def test_bad_options_of_branch_exit_with_2(
    canned: Canned, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["branch", "t1", *options]) == 2
    assert capsys.readouterr() == ("", f"omni-r1: {message}\n")
    assert canned.calls == []


def test_rejected_edit_is_named_by_option_and_step(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    for path, name in (
        ("body.edits.1.text", "--text of step 3"),
        ("body.edits.0.image", "--image of step 1"),
        ("body.edits.0.image.image_id", "--image of step 1"),
        ("body.edits.1", "--text or --image of step 3"),
        ("body.edits", "--text or --image"),
        ("body.after_step", "--after"),
        ("body.then_text", "--then"),
        ("body.sampling.max_new_tokens", "--max-new-tokens"),
        ("body.another", "another"),
    ):
        fields = [{"path": path, "message": "not possible"}]
        problem = {"code": "bad_edit", "detail": f"{path}: not possible", "errors": fields}
        canned.answers["POST /v1/traces/t1/branches"] = (422, problem)
        assert main(["branch", "t1", "--after", "3", "--text", "3=a", "--image", "1=blank"]) == 2
        assert capsys.readouterr() == ("", f"omni-r1: {name}: not possible\n")


def test_then_and_answer_exclude_each_other(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["branch", "t1", "--after", "1", "--then", "So", "--answer"]) == 2
    assert "not allowed with argument --then" in capsys.readouterr().err


def test_branch_of_a_running_trace_exits_with_2(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"code": "trace_live", "detail": "the trace is running; wait for its end", "status": 409, "title": "x"}
    canned.answers["POST /v1/traces/t1/branches"] = (409, problem)
    assert main(["branch", "t1", "--after", "1"]) == 2
    assert capsys.readouterr() == ("", "omni-r1: the trace is running; wait for its end\n")


def test_several_branches_print_answers_and_tally(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answers["POST /v1/traces/t1/branches"] = GROUP
    assert main(["branch", "t1", "--after", "1", "--n", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "   answer  verdict  seed  trace",
        "1  red     right    5     t1",
        "2  blue    right    5     b1",
        "",
        "answer  count  share  verdict",
        "red     1      50%    -",
        "blue    1      50%    -",
    ]
    assert err == "nano-omni-r1, group g1\n"
    assert canned.body_of("POST /v1/traces/t1/branches")["n"] == 2


def test_samples_of_a_question_print_answers_and_tally(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answers["POST /v1/traces"] = SAMPLES
    greedy = finished("failed") | {"sampling": {"seed": 5, "temperature": 0}}
    canned.answers |= {"GET /v1/traces/t1": (200, greedy), "GET /v1/groups/g1": (200, group("blue", None))}
    assert main(["ask", "picture.png", "Why?", "--n", "2"]) == 0
    out, err = capsys.readouterr()
    assert "1  (failed)  right    5     t1\n2  blue      right    5     b1\n" in out
    assert "(no answer)  1      50%    -\n" in out
    assert "1 of 2 traces did not complete" in err
    assert "greedy samples are identical" in err
    assert canned.body_of("POST /v1/traces")["n"] == 2


def test_quiet_samples_print_the_most_frequent_answer(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answers |= {"POST /v1/traces": SAMPLES, "GET /v1/groups/g1": (200, group(None, "blue", "red"))}
    assert main(["ask", "picture.png", "Why?", "--n", "2", "--quiet"]) == 0
    assert capsys.readouterr().out == "blue\n"


def test_samples_as_json_and_in_a_folder(canned: Canned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answers["POST /v1/traces"] = SAMPLES
    assert main(["ask", "picture.png", "Why?", "--n", "2", "--json", "--out", "there"]) == 0
    assert json.loads(capsys.readouterr().out) == group("red", "blue")
    saved = sorted(str(path.relative_to(tmp_path / "there")) for path in (tmp_path / "there").rglob("*.*"))
    folders = [f"trace-{number}/{name}" for number in (1, 2) for name in ("step-1.png", "trace.json")]
    assert saved == ["group.json", *folders]
    assert (tmp_path / "there" / "trace-2" / "step-1.png").read_bytes() == b"PNG of step 1"


def test_samples_that_all_failed_exit_with_1(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answers |= {"POST /v1/traces": SAMPLES, "GET /v1/groups/g1": (200, group(None))}
    canned.answers |= {f"GET /v1/traces/{id_}": (200, finished("failed")) for id_ in ("t1", "b1")}
    assert main(["ask", "picture.png", "Why?", "--n", "2"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "omni-r1: none of the 2 traces completed: the engine died; ask again\n"


def test_task_is_asked_several_times(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answers["POST /v1/traces"] = SAMPLES
    assert main(["task", "--ask", "--n", "2", "--quiet"]) == 0
    assert capsys.readouterr().out == "red\n"
