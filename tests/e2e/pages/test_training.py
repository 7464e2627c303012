"""Training and Checkpoints in a real browser: simulated jobs on the scripted engine, a real one on the shipped base."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from app.cli.parser import build_parser
from app.client import Client
from tests.e2e.browser import PATIENCE_MS, Open, asked_in_address, becomes, connections, count_connections, status
from tests.e2e.pages.test_looks import SMALL_TARGETS
from tests.e2e.real_server import Server
from tests.e2e.states import CHECKPOINTS, DATA, TRAINING, own_data
from training.spec.spec import parse_spec

pytestmark = pytest.mark.timeout(600)  # an upper bound on a very busy machine, including a server start
PERPO = {
    "method": "perpo",
    "base_checkpoint": "nano-omni-r1",
    "data": DATA,
    "hyperparameters": {"steps": 4000},
}


def start(page: Any, spec: dict[str, Any]) -> str:
    """Starts a job through the full spec; returns its id."""
    page.click("[data-preset=nano-perpo] .or-secondary")
    page.fill(".or-editor textarea", json.dumps(spec))
    page.click("text=Start this job")
    page.wait_for_selector(".or-editor", state="hidden")
    job = asked_in_address(page, "job")
    page.wait_for_selector(f".or-run[data-job={job}]")
    return job


def ended(page: Any, wanted: str = "succeeded", *, timeout_ms: float = PATIENCE_MS) -> None:
    page.wait_for_selector(f".or-run[data-status={wanted}]", timeout=timeout_ms)


def texts_of(selector: str) -> str:
    """A script that returns the texts of all visible matches."""
    return (
        f"() => [...document.querySelectorAll('{selector}')].filter((e) => e.checkVisibility()).map((e) => e.innerText)"
    )


def test_job_is_started_stopped_resumed_and_deleted(studio: Open, slow_url: str) -> None:
    window = studio(slow_url, alone=True)
    count_connections(window)
    page = window.page("/training", ready=TRAINING)
    job = start(page, PERPO)
    page.wait_for_selector(".or-run[data-status=running]")
    page.wait_for_selector(".or-sample-chip >> nth=1")
    assert connections(page) == 1
    words = page.wait_for_selector(".or-chart:visible svg[role=img][aria-label*=' at step ']").get_attribute(
        "aria-label"
    )
    assert re.match(r"Reward: accuracy [\d.]+ at step \d+, from", words)
    page.wait_for_selector(".or-sample .or-viewer[data-status=completed]")
    assert page.locator(".or-rewards dt").all_inner_texts() == ["reward", "accuracy", "format", "perception"]
    page.wait_for_selector(r".or-run-line >> text=/step \d+ of 4,000 · .* left/")

    page.click(".or-run-head >> text=Stop")
    ended(page, "cancelled")
    page.wait_for_selector(".or-run-trouble >> text=Stopped at the end of a step")
    page.wait_for_selector(f"[data-job={job}][data-status=cancelled] >> text=Resume")
    done = page.evaluate("omniR1.parts.training.run.state.stages.perpo.step")

    page.reload()  # the URL selects the job
    page.wait_for_selector(f".or-run[data-job={job}][data-status=cancelled]")
    page.wait_for_function(f"omniR1.parts.training.run.state.stages.perpo?.step === {done}")
    page.click(".or-run-head >> text=Resume")
    page.wait_for_selector(".or-run[data-status=running]")
    page.wait_for_function(f"omniR1.parts.training.run.state.stages.perpo.step > {done}")
    page.click(".or-run-head >> text=Stop")
    ended(page, "cancelled")
    page.wait_for_function("window.sources.every((one) => one.readyState === 2)")

    page.click(f"li[data-job={job}] .or-delete")
    page.click("text=delete?")
    page.wait_for_selector(f"li[data-job={job}]", state="detached")
    becomes(page, "() => location.search", "")
    page.wait_for_selector(".or-run-empty:visible")


def test_recipe_shows_stages_warnings_and_reports(studio: Open, slow_url: str, recipe: str) -> None:
    page = studio(slow_url).page(f"/training?job={recipe}", ready=TRAINING)
    ended(page)
    page.wait_for_selector(".or-stages li[data-state=done] >> nth=3")
    becomes(page, texts_of(".or-stage-name"), ["Zero", "PeSFT", "PeRPO", "Benchmark"])
    blank = page.locator("[data-code=blank_pictures]").inner_text()
    assert "What to do:" in blank
    assert "learning rate" in blank
    page.click(".or-tabs >> text=PeSFT")
    becomes(page, texts_of(".or-chart-title"), ["Loss", "Speed"])
    page.focus(".or-charts")
    for key, step in (("Home", 1), ("ArrowRight", 2), ("End", 12)):
        page.keyboard.press(key)
        page.wait_for_selector(f"text=/values at step {step}\\b/")
    page.click("text=all values of the latest step")
    page.wait_for_selector("tr[data-metric='optim/grad_norm']")
    page.wait_for_selector("[data-kind=bootstrapping] img")
    page.wait_for_selector("[data-kind=benchmark] td >> text=0.78")
    page.click(".or-made a >> nth=0")
    page.wait_for_selector(CHECKPOINTS, state="attached")
    page.wait_for_selector(".or-checkpoint-detail h2 >> text=perpo-step-10")
    page.click("text=open the job")
    page.wait_for_selector(".or-run[data-status=succeeded]")


def test_editor_shows_the_request_and_rejects_errors(studio: Open, slow_url: str) -> None:
    window = studio(slow_url)
    window.expected = ["422"]
    page = window.page("/training", ready=TRAINING)
    late: list[Any] = []  # the list of checkpoints, delayed until something is typed
    page.route("**/v1/checkpoints*", lambda route: late.append(route))
    with page.expect_request("**/v1/checkpoints*"):
        page.click("[data-preset=nano-pesft] .or-secondary")
    page.fill(".or-editor input[inputmode=numeric]", "7")
    for route in late:
        route.continue_()
    page.wait_for_selector(".or-editor option[value=nano-base] ~ option", state="attached")
    page.unroute("**/v1/checkpoints*")
    page.check(".or-editor input[type=checkbox]")
    spec = json.loads(page.input_value(".or-editor textarea"))
    assert (spec["seed"], spec["activate"]) == (7, True)
    page.wait_for_selector(".or-editor pre >> nth=1")
    curl, command = (shlex.split(text) for text in page.locator(".or-editor pre").all_inner_texts())
    assert json.loads(curl[-1]) == spec
    assert command[0] == f"OMNI_R1_URL={slow_url}"
    given = build_parser().parse_args(command[2:])
    assert {"method": "pesft", **json.loads(given.spec)} == spec

    page.fill(".or-editor textarea", '{"method": "pesft",')
    page.wait_for_selector("text=not valid JSON")
    assert page.is_disabled("text=Start this job")
    page.fill(".or-editor textarea", json.dumps(spec | {"hyperparameters": {"steps": 0, "magic": 1}}))
    page.click("text=Start this job")
    page.wait_for_selector(".or-editor .or-error li >> nth=1")
    reported = page.inner_text(".or-editor .or-error")
    assert "steps" in reported
    assert "magic" in reported
    page.focus(".or-editor textarea")
    page.keyboard.press("Escape")
    page.wait_for_selector(".or-editor", state="hidden")
    becomes(page, "() => document.activeElement.textContent", "Full spec")


def test_shipped_checkpoint_shows_metrics_and_no_job(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page("/checkpoints?name=nano-omni-r1-zero", ready=CHECKPOINTS)
    page.wait_for_selector(".or-checkpoint-detail th >> text=accuracy/all")
    assert page.locator("text=open the job").count() == 0
    assert "drawings right" in page.inner_text(".or-tree [data-name=nano-omni-r1-zero]")


def test_two_checkpoints_answer_side_by_side(studio: Open, slow_url: str) -> None:
    window = studio(slow_url, alone=True)
    count_connections(window)
    page = window.page("/checkpoints", ready=CHECKPOINTS)
    page.click("text=Compare two")
    page.wait_for_selector(".or-compare-page .or-example[aria-pressed=true]")
    names = [page.input_value(f"[data-side={side}] select") for side in ("left", "right")]
    assert len(set(names)) == 2
    page.click("text=Ask both")
    page.wait_for_selector("[data-side=right] .or-step >> nth=0")
    assert connections(page) <= 1
    for side in ("left", "right"):
        page.wait_for_selector(f"[data-side={side}] .or-viewer[data-status=completed]")
    page.wait_for_selector("text=/Both are|Only the/")
    page.click("[data-side=left] .or-chip >> nth=1")
    page.wait_for_selector("[data-side=right] li:nth-child(2) .or-chip[aria-current=step]")
    page.keyboard.press("End")
    page.wait_for_selector("[data-side=right] li:last-child .or-chip[aria-current=step]")
    seeds = page.locator(".or-compare-page .or-seed").all_inner_texts()
    assert seeds[0].startswith("seed ")
    assert seeds[0] == seeds[1]


def test_insufficient_memory_offers_a_choice(studio: Open, slow_url: str) -> None:
    window = studio(slow_url)
    window.expected = ["507"]
    page = window.page("/checkpoints?name=nano-base", ready=CHECKPOINTS)
    requested: list[Any] = []

    def refuse(route: Any) -> None:
        requested.append(route.request.post_data_json)
        problem = {"status": 507, "code": "insufficient_memory", "detail": "it needs 96 MB and 38 MB are left"}
        route.fulfill(status=507, headers={"Content-Type": "application/problem+json"}, body=json.dumps(problem))

    page.route("**/activate", refuse)
    page.click(".or-checkpoint-detail .or-primary")
    page.wait_for_selector("text=it needs 96 MB and 38 MB are left. Nothing has changed.")
    page.click("text=Wait for running traces")
    page.wait_for_function("document.querySelectorAll('.or-activation button').length === 2")
    assert requested == [{}, {"drain": "wait"}]
    page.wait_for_selector(".or-tree [data-name=nano-omni-r1] .or-flag[data-tone=good]")


def test_finished_activation_ignores_late_progress(studio: Open, slow_url: str) -> None:
    window = studio(slow_url, alone=True)
    window.context.add_init_script(
        "const real = fetch; window.fetch = async (...all) => { const answer = await real(...all);"
        "const late = { readyz: 900, activate: 600 }[String(all[0]).split('/').pop()] ?? 0;"
        "if (late) await new Promise((go) => setTimeout(go, late)); return answer; };"
    )
    page = window.page("/checkpoints?name=nano-base", ready=CHECKPOINTS)
    for name in ("nano-base", "nano-omni-r1"):
        page.click(f".or-tree [data-name={name}]")
        page.click(".or-checkpoint-detail .or-primary:enabled")
        page.wait_for_selector(f".or-tree [data-name={name}] .or-flag[data-tone=good]")
        assert page.get_attribute(".or-activation", "data-tone") == "done"


def test_folder_without_a_checkpoint_is_rejected(studio: Open, slow_url: str, tmp_path: Path) -> None:
    window = studio(slow_url)
    window.expected = ["422"]
    page = window.page("/checkpoints", ready=CHECKPOINTS)
    page.fill(".or-register input", str(tmp_path))
    page.click("text=Register >> nth=-1")
    page.wait_for_selector(".or-register .or-error:visible")
    assert len(page.inner_text(".or-register .or-error")) > 20
    assert page.input_value(".or-register input") == str(tmp_path)


def test_own_rewards_and_tasks_are_shown_as_a_job_names_them(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page("/training", ready=TRAINING)
    names = ["tidy", "own_reward.py:tidy", "own_reward.py:names_the_answer", "dots"]
    becomes(page, texts_of(".or-extension-name strong"), names)
    kinds = page.locator(".or-extension-name .or-quiet").all_inner_texts()
    assert kinds == ["reward"] * 3 + ["task family"]
    *rewards, tasks = (json.loads(f"{{{text}}}") for text in page.locator(".or-extensions-list code").all_inner_texts())
    for reward, key in zip(rewards, ("name", "file", "file"), strict=True):
        spec = parse_spec({"method": "perpo", "base_checkpoint": "nano-omni-r1", "hyperparameters": reward, **tasks})
        (custom,) = spec.resolved()["hyperparameters"]["reward"]["custom"]
        assert custom[key] in names


def test_unknown_job_is_reported(studio: Open, slow_url: str) -> None:
    window = studio(slow_url)
    window.expected = ["404"]
    page = window.page("/training?job=job_nothing", ready=TRAINING)
    page.wait_for_selector("text=does not exist on this server")


def test_grader_works_by_keyboard(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page("/training", ready=TRAINING)
    page.focus(".or-grader [name=answer]")
    page.keyboard.type("The answer is 5 km.")
    page.keyboard.press("Tab")
    page.keyboard.type("5000 m")
    page.keyboard.press("Enter")
    page.wait_for_selector(".or-grader-verdict[data-tone=good] >> text=numbers and units")
    page.keyboard.press("Tab")
    page.keyboard.type("red\nblue")
    page.fill(".or-grader [name=answer]", "B) red")
    page.fill(".or-grader [name=reference]", "B")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".or-grader-verdict[data-tone=bad] >> text=options")
    page.fill(".or-grader [name=answer]", "")
    page.press(".or-grader [name=reference]", "Enter")
    page.wait_for_selector(".or-grader-verdict >> text=no answer")


def test_own_data_is_checked_then_used(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page("/training", ready=TRAINING)
    page.set_input_files(".or-data input[type=file]", own_data())
    page.wait_for_selector("text=6 rows; 5 rows rejected by at least one method.")
    usable = [page.locator(f"[data-method={one}] .or-num").inner_text() for one in ("pesft", "perpo", "benchmark")]
    assert usable == ["1 usable row", "3 usable rows", "3 usable rows"]
    assert page.locator(".or-data-row").count() == 3
    page.wait_for_function("() => [...document.querySelectorAll('.or-data-row img')].every((one) => one.naturalWidth)")
    assert page.locator(".or-data-rejections tbody tr").count() == 5
    page.select_option(".or-data select", "perpo")
    page.wait_for_selector("text=6 rows; 3 rows rejected by PeRPO.")
    with page.expect_download() as saved:
        page.click("text=complete list")
    lines = [json.loads(line) for line in Path(saved.value.path()).read_text().splitlines()]
    assert [one["row"] for one in lines if "perpo" in one["methods"]] == [4, 5, 6]
    page.click("[aria-label='Use this data for Benchmark']")
    spec = json.loads(page.input_value(".or-editor textarea"))
    assert (spec["method"], spec["data"]["source"]) == ("benchmark", "jsonl")
    page.click("text=Start this job")
    page.wait_for_selector(".or-slices li")
    assert page.locator(".or-chart:visible").count() == 0


def test_phone_has_touch_targets_on_both_pages(studio: Open, slow_url: str, recipe: str) -> None:
    phone: dict[str, Any] = {"has_touch": True, "is_mobile": True}
    window = studio(slow_url, **phone)
    page = window.page(f"/training?job={recipe}", ready=TRAINING)
    page.set_viewport_size({"width": 390, "height": 844})
    ended(page)
    page.wait_for_selector(".or-sample-chip")
    becomes(page, SMALL_TARGETS, [])
    page = window.page("/checkpoints", ready=CHECKPOINTS)
    page.set_viewport_size({"width": 390, "height": 844})
    becomes(page, SMALL_TARGETS, [])


def test_real_job_creates_an_active_checkpoint(studio: Open, server: Server, client: Client) -> None:
    before = client.readiness()
    page = studio(server.url).page("/training", ready=TRAINING)
    spec = {
        "method": "pesft",
        "base_checkpoint": "nano-base",
        "data": {"source": "unitasks", "num_samples": 64},
        "hyperparameters": {"steps": 4, "log_every": 1, "save_every": 4},
        "seed": 1,
    }
    start(page, spec)
    ended(page)
    becomes(page, "() => omniR1.parts.training.run.state.stages.pesft.series['loss/text'].points.length", 4)
    page.click(".or-made a >> nth=0")
    page.wait_for_selector(CHECKPOINTS, state="attached")
    page.wait_for_selector(".or-checkpoint-detail h2 >> text=/step-4$/")
    name = page.inner_text(".or-checkpoint-detail h2")
    page.click(".or-checkpoint-detail >> text=Activate")
    page.wait_for_selector(".or-activation[data-tone=done]")
    page.wait_for_selector(f".or-tree [data-name='{name}'] .or-flag[data-tone=good]")
    now = client.readiness()
    assert now["checkpoint"] == name
    assert now["weight_version"] > before["weight_version"]
    page.wait_for_selector(f".or-checkpoint option >> text='{name} · v{now['weight_version']}'", state="attached")

    asking = page.context.new_page()
    asking.goto(server.url)
    asking.wait_for_selector("html[data-studio=ready]", state="attached")
    asking.click("#or-step")
    status(asking, "paused", "completed")
    trace = client.trace(asked_in_address(asking, "trace"))
    assert (trace["checkpoint"], trace["weight_version"]) == (name, now["weight_version"])

    page.click(f"text=Back to {before['checkpoint']}")
    page.wait_for_selector(f".or-tree [data-name='{before['checkpoint']}'] .or-flag[data-tone=good]")
    assert client.readiness()["weight_version"] == before["weight_version"]
