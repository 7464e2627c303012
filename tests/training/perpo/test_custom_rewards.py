"""PeRPO with rewards of your own: in the total, the metrics and the samples; down, wrong, and resumed."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from examples.own_endpoint import app
from tests.tiny import make_tiny_checkpoint
from tests.training.contexts import events_of, job
from tests.training.packages import write_package
from training.jobs.context import JobContext, JobError
from training.perpo import job as perpo

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_reward.py"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


def context(base: Path, folder: Path, custom: Any, *, resume: bool = False, **reward: Any) -> JobContext:
    hyper = {
        "steps": 3,
        "lr": 1e-3,
        "prompts_per_step": 2,
        "rollouts_per_prompt": 3,
        "oversampling": 1.0,
        "mini_batch_prompts": 1,
        "filter_metric": "none",
        "max_new_tokens": 48,
        "save_every": 2,
        "reward": {"custom": custom, **reward},
    }
    data = {"source": "unitasks", "num_samples": 40}
    spec = {"method": "perpo", "data": data, "hyperparameters": hyper, "seed": 5}
    return job(folder, spec, base, resume=resume)


class Endpoint:
    """A server whose rewards are the numbers of steps; `fail_from` is the first request that it answers with 500."""

    def __init__(self) -> None:
        self.requests = 0
        self.fail_from = 1_000_000
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                endpoint.requests += 1
                cases = json.loads(self.rfile.read(int(self.headers["content-length"])))["cases"]
                body = json.dumps({"rewards": [len(case["response"]["steps"]) for case in cases]}).encode()
                self.send_response(500 if endpoint.requests >= endpoint.fail_from else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    running = Endpoint()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def example_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example's endpoint, with a key."""
    monkeypatch.setenv("REWARD_KEY", "secret")
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()
    listening.close()


def test_example_is_the_same_by_file_name_and_url(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example_url: str
) -> None:
    package = write_package(tmp_path, rewards={"tidy": "examples.own_reward:tidy"})
    monkeypatch.syspath_prepend(str(package))
    custom = [
        {"file": f"{EXAMPLE}:tidy", "label": "file"},
        {"name": "tidy"},
        {"url": example_url, "api_key_env": "REWARD_KEY", "batch_size": 2},
    ]
    ctx = context(base, tmp_path / "job", custom, alpha=0.0, beta=0.0, gamma=0.0)
    perpo.run(ctx)
    rows = [row["values"] for row in events_of(ctx, "metrics")]
    assert len(rows) == 3
    for values in rows:
        for part in ("", "/few", "/drawn", "/short"):
            found = [values[f"reward/custom/{label}{part}"] for label in ("file", "tidy", "url")]
            assert found == [found[0]] * 3
        assert values["reward/total"] == pytest.approx(3.0 * values["reward/custom/tidy"])
    assert any(values["reward/custom/tidy"] for values in rows)
    assert httpx.post(example_url, json={"cases": []}).status_code == 401


def test_example_joins_total_metrics_and_samples(base: Path, tmp_path: Path) -> None:
    ctx = context(base, tmp_path / "job", {"file": f"{EXAMPLE}:tidy", "weight": 2.0}, alpha=0.5, beta=0.25, gamma=0.0)
    perpo.run(ctx)
    for row in events_of(ctx, "metrics"):
        values = row["values"]
        parts = [values[f"reward/custom/tidy/{part}"] for part in ("few", "drawn", "short")]
        assert values["reward/custom/tidy"] == pytest.approx(sum(parts))
        built_in = 0.5 * values["reward/accuracy"] + 0.25 * values["reward/format"]
        assert values["reward/total"] == pytest.approx(built_in + 2.0 * values["reward/custom/tidy"])
    sample = events_of(ctx, "sample")[0]
    assert set(sample["rewards"]["custom"]) == {"tidy", "tidy/few", "tidy/drawn", "tidy/short"}


def test_weight_zero_changes_no_weight_of_the_model(base: Path, tmp_path: Path) -> None:
    metrics = []
    for name, custom in (("with", [{"file": f"{EXAMPLE}:tidy", "weight": 0.0}]), ("without", [])):
        ctx = context(base, tmp_path / name, custom)
        perpo.run(ctx)
        values = events_of(ctx, "metrics")[-1]["values"]
        metrics.append({k: v for k, v in values.items() if not k.startswith(("speed/", "reward/custom"))})
    assert metrics[0] == metrics[1]


def test_images_are_decoded_on_request(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "looks.py"
    file.write_text(
        "def sees(sample, response):\n"
        "    drawn = [step for step in response.steps if step.codes is not None]\n"
        "    assert all(step.image.mode == 'RGB' for step in drawn)\n"
        "    return {'given': len(sample.images), 'drawn': len(drawn)}\n"
    )
    ctx = context(base, tmp_path / "job", {"file": f"{file}:sees", "images": True})
    perpo.run(ctx)
    assert all(row["values"]["reward/custom/sees/given"] == 1.0 for row in events_of(ctx, "metrics"))


def test_reward_that_raises_fails_the_job(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def bad(sample, response):\n    return float('nan')\n")
    with pytest.raises(JobError, match=r"6 of 6 trajectories could not be scored \(bad: it returned nan") as failed:
        perpo.run(context(base, tmp_path / "job", {"file": f"{file}:bad"}))
    assert failed.value.code == "scoring_failed"


def test_few_errors_leave_their_responses_out(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "picky.py"
    file.write_text(
        "calls = []\n"
        "def picky(sample, response):\n"
        "    calls.append(1)\n"
        "    return 'text' if len(calls) % 6 == 0 else 1.0\n"
    )
    ctx = context(base, tmp_path / "job", {"file": f"{file}:picky"}, max_error_share=0.2)
    perpo.run(ctx)
    assert [row["values"]["scoring/error_share"] for row in events_of(ctx, "metrics")] == pytest.approx([1 / 6] * 3)
    assert {row["code"] for row in events_of(ctx, "warning")} >= {"scoring_errors"}


@pytest.mark.parametrize(
    ("custom", "code"),
    [
        ({"file": "/nowhere/none.py:none"}, "reward_unusable"),
        ({"name": "nobody-has-this"}, "reward_unusable"),
        ({"url": "http://127.0.0.1:9/", "retries": 0}, "reward_unreachable"),
    ],
)
def test_unusable_reward_fails_before_the_first_step(base: Path, tmp_path: Path, custom: Any, code: str) -> None:
    ctx = context(base, tmp_path / "job", custom)
    with pytest.raises(JobError) as failed:
        perpo.run(ctx)
    assert failed.value.code == code
    assert events_of(ctx, "metrics") == []


def test_url_that_goes_down_keeps_what_was_learnt(base: Path, tmp_path: Path, endpoint: Endpoint) -> None:
    """Down from step 1, then from step 3 on: the job resumes to the end that it would have had."""
    custom = {"url": f"{endpoint.url}?key=secret", "weight": 0.1, "retries": 1}
    whole = context(base, tmp_path / "whole", custom)
    perpo.run(whole)
    place = rf"the reward url at {re.escape(endpoint.url)} cannot be reached: status 500 \(2 tries\)"
    for step, made in ((1, []), (3, ["made-step-2"])):
        requests = 1 + 2 * 2 if step == 3 else 1  # the empty batch, and two groups of each step
        endpoint.requests, endpoint.fail_from = 0, requests + 1
        ctx = context(base, tmp_path / "job", custom, resume=step == 3)
        with pytest.raises(JobError, match=rf"step {step}: {place}; ") as failed:
            perpo.run(ctx)
        assert failed.value.code == "reward_unreachable"
        assert "secret" not in str(failed.value)
        assert [path.name for path in ctx.folder.glob("checkpoints/*")] == made
    endpoint.fail_from = 1_000_000
    again = context(base, tmp_path / "job", custom, resume=True)
    perpo.run(again)

    def last(ctx: JobContext) -> dict[str, float]:
        values = events_of(ctx, "metrics")[-1]["values"]
        return {name: value for name, value in values.items() if not name.startswith("speed/")}

    assert last(again) == last(whole)
