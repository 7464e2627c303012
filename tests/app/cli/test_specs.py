"""Specs from files: YAML with the scalars of JSON, and nothing that could run, grow or hide."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from app.cli.specs import read_spec
from app.cli.terminal import CommandError
from app.contract.schemas_jobs import SweepCreate
from app.jobs.sweeps import combinations
from tests.app.cli.test_jobs import Say, cli
from tests.app.conftest import Serve
from tests.app.job_helpers import FakeCheckpoints, worker

DOCS = Path(__file__).parents[3] / "docs" / "runs.md"


def read(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "run.yaml"
    path.write_text(text)
    return read_spec(str(path))


def test_yaml_has_the_scalars_of_json(tmp_path: Path) -> None:
    text = "a: 1e-4\nb: [1, -2.5, null, true]\nc: no\nd: 2026-01-01\ne: 007\nf: 0x10\ng: '1'\nh:\n  i: 'a: b'\n"
    found = read(tmp_path, text)
    assert found == {
        "a": 1e-4,
        "b": [1, -2.5, None, True],
        "c": "no",
        "d": "2026-01-01",
        "e": "007",
        "f": "0x10",
        "g": "1",
        "h": {"i": "a: b"},
    }
    json_file = tmp_path / "run.json"
    json_file.write_text('{"a": 1e-4}')
    assert read_spec(str(json_file)) == {"a": 1e-4} == read_spec('{"a": 1e-4}')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x [1]\nb: *x\n", "anchors"),
        ("a: &a [x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", "anchors"),
        ("a: !!python/object/apply:os.system ['true']\n", "tags"),
        ("a: !custom 1\n", "tags"),
        ("a: 1\na: 2\n", "occurs once"),
        ("? [1]\n: 2\n", "must be a text"),
        ("a: 1\n---\nb: 2\n", "single document"),
        (f"a: {'[' * 40}{']' * 40}\n", "levels"),
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "must be an object"),
        ("a\x00: 1\n", "not valid YAML"),
        (f"a: {'x' * 1_000_001}\n", "bytes"),
        ("", "must be an object"),
    ],
)
def test_dangerous_or_broken_yaml_is_rejected(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=re.escape(words)) as raised:
        read(tmp_path, text)
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)


def test_shown_sweep_is_valid(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert len(list(combinations(SweepCreate.model_validate(read(tmp_path, block))))) == 6


async def test_sweep_from_a_file_becomes_one_table(serve: Serve, capsys: Say, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    spec = "{method: pesft, base_checkpoint: nano-omni-r1, data: {source: unitasks, num_samples: 8}}"
    file.write_text(f"name: rates\nspec: {spec}\ngrid: {{hyperparameters.lr: [1e-3, 5e-4]}}\n")
    async with serve(job_command=worker("succeed")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        assert await cli(server, "sweep", str(file)) == 0
        said = capsys.readouterr()
        assert "2 succeeded" in said.err
        assert all(text in said.out for text in ("hyperparameters.lr=0.001", "hyperparameters.lr=0.0005", "loss/ce"))
        assert await cli(server, "sweeps", "--json") == 0
        (listed,) = json.loads(capsys.readouterr().out)
        assert await cli(server, "sweeps", "show", listed["id"], "--json") == 0
        assert [job["status"] for job in json.loads(capsys.readouterr().out)["jobs"]] == ["succeeded"] * 2
        for action in ("cancel", "resume"):
            assert await cli(server, "sweeps", action, listed["id"]) == 0
        file.write_text(f"spec: {spec}\ngrid: {{seed: [1]}}\nmagic: 1\n")
        assert await cli(server, "sweep", str(file)) == 2
        assert "unknown keys: magic" in capsys.readouterr().err
        file.write_text(f"spec: {spec}\ngrid: {{seed: [{', '.join(map(str, range(101)))}]}}\n")
        assert await cli(server, "sweep", str(file)) == 2
        assert "101 combinations" in capsys.readouterr().err
        for wrong in ("[]", "x", "", "{seed: 1}", "{seed: null}", "{seed: abc}", "{name: ab}", "{seed: {a: 1}}"):
            file.write_text(f"spec: {spec}\ngrid: {wrong}\n")
            assert await cli(server, "sweep", str(file)) == 2, wrong
            assert "grid" in capsys.readouterr().err, wrong
        file.write_text("spec: 5\ngrid: {seed: [1]}\n")
        assert await cli(server, "sweep", str(file)) == 2
        assert "spec" in capsys.readouterr().err
