"""`omni-r1 train METHOD` and `omni-r1 jobs` against the real API with minimal workers."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from app.cli.main import main
from app.cli.parser import build_parser
from app.cli.specs import build_spec
from app.cli.terminal import CommandError
from tests.app.conftest import Serve, Server
from tests.app.job_helpers import FakeCheckpoints, events, of_type, worker
from training.spec.spec import PRESETS, parse_spec

Say = pytest.CaptureFixture[str]


async def cli(server: Server, *argv: str) -> int:
    return await asyncio.to_thread(main, [*argv, "--url", f"http://127.0.0.1:{server.port}"])


def spec_of(*argv: str) -> dict[str, Any]:
    return build_spec(build_parser().parse_args(["train", *argv]))


async def test_train_follows_the_job_to_its_end(serve: Serve, capsys: Say) -> None:
    async with serve(job_command=worker("succeed")) as server:
        server.services.jobs._checkpoints = server.services.jobs._activation = FakeCheckpoints()
        argv = [
            "train",
            "pesft",
            "--base",
            "nano-omni-r1",
            "--set",
            "hyperparameters.steps=4",
            "--seed",
            "3",
            "--activate",
        ]
        assert await cli(server, *argv, "--output-name", "mine") == 0
        said = capsys.readouterr()
        assert "checkpoint mine-step-4" in said.err
        assert "mine-step-4, version 7" in said.out
        assert "loss/ce" in said.out
        (job,) = (await server.client.get("/v1/jobs")).json()["data"]
        assert job["spec"]["hyperparameters"]["steps"] == 4
        assert (job["spec"]["seed"], job["spec"]["activate"]) == (3, True)

        assert await cli(server, "jobs") == 0
        assert job["id"] in capsys.readouterr().out
        assert await cli(server, "jobs", "show", job["id"], "--json") == 0
        assert json.loads(capsys.readouterr().out)["id"] == job["id"]
        argv = ["jobs", "label", job["id"], "--name", "circles", "--tag", "a", "--tag", "b", "--note", "two\nlines"]
        assert await cli(server, *argv) == 0
        said = capsys.readouterr().out
        assert all(text in said for text in ("circles", "a, b", "two lines"))
        assert await cli(server, "jobs", "list", "--tag", "b", "--name", "circles") == 0
        assert job["id"] in capsys.readouterr().out
        assert await cli(server, "jobs", "label", job["id"], "--name", "", "--tag", "") == 0
        found = (await server.client.get(f"/v1/jobs/{job['id']}")).json()
        assert (found["name"], found["tags"], found["note"]) == (None, [], "two\nlines")
        assert await cli(server, "jobs", "label", job["id"]) == 2
        capsys.readouterr()
        assert await cli(server, "jobs", "delete", job["id"]) == 0
        assert await cli(server, "jobs", "list", "--json") == 0
        assert json.loads(capsys.readouterr().out) == []
        assert await cli(server, "jobs", "show", job["id"]) == 2


async def test_failed_job_exits_with_1_and_reason(serve: Serve, capsys: Say) -> None:
    async with serve(job_command=worker("fail")) as server:
        assert await cli(server, "train", "pesft", "--base", "nano-omni-r1") == 1
        said = capsys.readouterr().err
        assert "NaN at step 3 (loss_not_finite)" in said
        assert "the worker says hello" in said


async def test_all_invalid_fields_are_named(serve: Serve, capsys: Say) -> None:
    async with serve(job_command=worker("succeed")) as server:
        argv = ["train", "pesft", "--base", "nano-omni-r1", "--set", "hyperparameters.steps=0", "--set", "seed=x"]
        assert await cli(server, *argv) == 2
        said = capsys.readouterr().err
        assert "hyperparameters.steps: " in said
        assert "seed: " in said


async def test_local_data_file_is_uploaded_first(serve: Serve, capsys: Say, tmp_path: Path) -> None:
    async with serve(job_command=worker("succeed")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        data = tmp_path / "mine.jsonl"
        row = json.dumps({"Question": "?", "Text Reasoning Trace": "I look.", "Final Answer": "left"})
        data.write_text(f"{row}\n\n{row}\n")
        argv = ["train", "pesft", "--base", "nano-omni-r1", "--set", "data.num_samples=9", "--data", str(data)]
        assert await cli(server, *argv) == 0
        assert "2 rows" in capsys.readouterr().err
        (job,) = (await server.client.get("/v1/jobs")).json()["data"]
        assert (job["spec"]["data"]["source"], job["spec"]["data"]["num_samples"]) == ("jsonl", 9)
        assert Path(job["spec"]["data"]["path"]).read_bytes() == data.read_bytes()
        data.write_text('{"Question": "?"}\n{"Question"\n')
        assert await cli(server, *argv) == 2
        assert "line 2: no JSON" in capsys.readouterr().err
        data.write_text('{"Question": "?", "Final Answer": "left"}\n')
        assert await cli(server, *argv) == 2
        said = capsys.readouterr().err
        assert "pesft can use none of 1 rows: line 1:" in said
        assert "empty_reasoning" in said
        assert await cli(server, *argv[:-1], str(tmp_path / "nowhere.jsonl")) == 1


async def test_job_can_be_detached_cancelled_and_resumed(serve: Serve, capsys: Say) -> None:
    async with serve(job_command=worker("obey")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        assert await cli(server, "train", "pesft", "--base", "nano-omni-r1", "--detach") == 0
        job_id = capsys.readouterr().out.strip()
        await events(server, job_id, until=of_type("metrics"))
        assert await cli(server, "jobs", "cancel", job_id, "--wait") == 0
        assert "is cancelled" in capsys.readouterr().err
        assert await cli(server, "jobs", "watch", job_id) == 1  # it has ended unsuccessfully
        capsys.readouterr()
        assert await cli(server, "jobs", "resume", job_id, "--json") == 0
        reported = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [one["data"]["status"] for one in reported if one["type"] == "job.status"] == [
            "queued",
            "running",
            "succeeded",
        ]


@pytest.mark.parametrize("method", ["pesft", "perpo", "zero", "pipeline", "benchmark"])
def test_every_method_has_a_valid_default(method: str) -> None:
    assert parse_spec(spec_of(method)).method == method


def test_zero_alone_starts_as_in_the_pipeline() -> None:
    stage = dict(PRESETS["nano-zero"].spec["hyperparameters"]["zero"])
    assert spec_of("zero")["hyperparameters"] == stage
    assert spec_of("zero", "--set", "hyperparameters.candidates=2")["hyperparameters"] == stage | {"candidates": 2}
    assert PRESETS["nano-zero"].spec["hyperparameters"]["zero"] == stage  # the preset is unchanged


def test_spec_comes_from_preset_text_or_file(tmp_path: Path) -> None:
    preset = PRESETS["nano-perpo"].spec
    assert spec_of("perpo", "--preset", "nano-perpo") == preset
    assert (
        spec_of("perpo", "--preset", "nano-perpo", "--set", "hyperparameters.steps=2")["hyperparameters"]["steps"] == 2
    )
    assert PRESETS["nano-perpo"].spec["hyperparameters"]["steps"] == 60  # the preset is unchanged
    text = json.dumps({key: value for key, value in preset.items() if key != "method"})
    assert spec_of("perpo", "--spec", text) == preset
    (tmp_path / "spec.json").write_text(text)
    assert spec_of("perpo", "--spec", str(tmp_path / "spec.json")) == preset
    assert spec_of("perpo", "--set", 'data.slices=["natural"]', "--set", "gpu=shared")["data"]["slices"] == ["natural"]


@pytest.mark.parametrize(
    "argv",
    [
        ("pesft", "--spec", '{"method": "perpo"}'),
        ("pesft", "--spec", "{broken"),
        ("pesft", "--spec", "[1]"),
        ("pesft", "--spec", "/nowhere.json"),
        ("pesft", "--preset", "nobody"),
        ("pesft", "--set", "steps"),
    ],
)
def test_unreadable_spec_exits_with_2(argv: tuple[str, ...]) -> None:
    with pytest.raises(CommandError) as caught:
        spec_of(*argv)
    assert caught.value.exit_code == 2


def test_options_work_before_and_after_the_action() -> None:
    def parsed(*argv: str) -> argparse.Namespace:
        return build_parser().parse_args(["jobs", *argv])

    assert parsed("--limit", "3", "list").limit == parsed("list", "--limit", "3").limit == 3
    assert parsed().limit == 20
