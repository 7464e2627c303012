"""The launcher, without Ray: what it passes on, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from training.cluster import launcher
from training.cluster.actor import Ended

ROOT = Path(__file__).parents[3]


def test_worker_gets_keys_of_judges_and_rewards_but_no_secrets_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("REWARD_KEY", "JUDGE_KEY", "OMNI_R1_DEVICE", "WANDB_API_KEY", "HF_TOKEN", "https_proxy")
    kept = ("OMNI_R1_DATABASE_URL", "OMNI_R1_API_KEY", "AWS_SECRET_ACCESS_KEY", "PATH")
    for name in (*given, *kept):
        monkeypatch.setenv(name, "x")
    found = launcher._environment()
    assert [name for name in (*given, *kept) if name in found] == list(given)


@pytest.mark.parametrize("code", [0, 1, 3, -signal.SIGTERM, -signal.SIGKILL])
def test_launcher_ends_as_the_worker_did(tmp_path: Path, code: int) -> None:
    (tmp_path / "job.json").write_text('{"spec": {}}')
    program = f"""
import asyncio, runpy, sys
def run(coroutine):
    coroutine.close()
    return {code}
asyncio.run = run
sys.argv = ["launcher", {str(tmp_path)!r}]
runpy.run_module("training.cluster.launcher", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stderr) == (code, b"")


def test_job_without_a_specification_fails_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("[]")
    assert launcher.main([str(tmp_path)]) == 1
    assert '"bad_job"' in (tmp_path / "error.json").read_text()


async def test_end_is_reported_once_the_reports_are_seen_here(tmp_path: Path) -> None:
    """A network file system shows files of other machines late."""
    (tmp_path / "events.jsonl").write_text("{}")
    seen = asyncio.create_task(launcher._see(tmp_path, Ended(0, {"events.jsonl": 4, "result.json": 2})))
    for name, text in (("result.json", "{}"), ("events.jsonl", "{}{}")):
        done, _ = await asyncio.wait([seen], timeout=0.3)
        assert not done
        (tmp_path / name).write_text(text)
    async with asyncio.timeout(PATIENCE_S):
        await seen


def test_reports_that_never_come_are_waited_for_in_vain_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "SEEN_S", 0.1)
    asyncio.run(launcher._see(tmp_path, Ended(1, {"error.json": 9})))
    assert os.listdir(tmp_path) == []
