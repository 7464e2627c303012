"""The pages in every reachable state, for checks that must hold in all of them."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from app.client import Client
from tests.e2e.browser import Studio, asked_in_address, picture_file, status
from training.data.traces import trace_row

TRAINING = "html[data-training=ready]"
RUNS = "html[data-runs=ready]"
CHECKPOINTS = "html[data-checkpoints=ready]"
CARDS = ".or-card[data-trace]"
TOO_LONG = "word " * 420
DATA = {"source": "unitasks", "num_samples": 8}
RECIPE: dict[str, Any] = {
    "method": "pipeline",
    "base_checkpoint": "nano-base",
    "data": {"zero": DATA, "perpo": DATA, "benchmark": DATA},
    "hyperparameters": {"zero": {"pesft": None}, "pesft": {"steps": 12}, "perpo": {"steps": 10}, "benchmark": {}},
}
# of a scripted trace: three steps with images, then the answer
MEASURES: dict[str, Any] = {
    "reliance": {
        "answer_logprob": -0.2,
        "images": [
            {"step": step, "image_id": None, "reliance": nats, "per_step": [12.0, 3.5, 0.1]}
            for step, nats in enumerate((0.0, 1.4, -0.3, 9.0))
        ],
        "method": "masking",
    },
    "attention": {
        "images": [
            {"step": step, "image_id": None, "share": share, "grid": [[share / 64 + 0.001 * x for x in range(8)]] * 8}
            for step, share in enumerate((0.1, 0.3, 0.05, 0.4))
        ],
        "layers": "last third",
        "method": "attention",
    },
    "tokens": {
        "steps": [
            {
                "index": step,
                "tokens": [{"text": word, "logprob": logprob} for word, logprob in zip(words, chances, strict=True)],
                "image": [[logprob] * 8 for logprob in (*chances, 0.0, -0.2, None)],
            }
            for step, words, chances in (
                (1, ("I", " look", " for", " the", " things in the picture and mark the first one."), (None,) * 5),
                (
                    2,
                    ("I", " draw", " a", " box", " around the one that the question asks for."),
                    (-2, -1, -0.5, -0.2, 0),
                ),
                (3, ("I", " draw", " a", " line", " from one to the other."), (0, -0.2, -0.5, -1, -2)),
            )
        ],
        "answer": [{"text": "red", "logprob": -2}],
    },
}
State = tuple[str, Any]  # name and page


def played_recipe(url: str) -> str:
    """The id of a finished job with every kind of stage, warning, sample and report."""
    with Client(url) as client:
        job = client.create_job(RECIPE)
        for _ in client.job_events(job["id"]):
            pass
    return str(job["id"])


def studio_states(window: Studio, folder: Path) -> Iterator[State]:
    page = window.page()
    page.wait_for_selector(".or-budget:not(:empty)")
    yield "studio, empty", page
    page.click("text=What can I ask?")
    page.wait_for_selector(".or-family:not(:disabled) >> nth=12")
    yield "studio, what to ask", page
    page.click("text=What can I ask?")
    page.click("#or-step")
    page.wait_for_selector(".or-chip[data-live]")
    yield "studio, running", page
    status(page, "paused")
    yield "studio, paused", page
    page.click("#or-stop")
    status(page, "cancelled")
    yield "studio, cancelled", page
    page.click("#or-reason")
    status(page, "completed")
    page.wait_for_selector(".or-verdict:not(:empty)")
    page.wait_for_selector(".or-repeats:visible")
    yield "studio, finished", page
    for opener, ready in (
        ("text=reference trace", "dialog .or-reference-row img"),
        (".or-small", "dialog .or-full"),
        (".or-round[aria-label^=Keyboard]", "dialog kbd"),
        ("text=sketch", "dialog canvas"),
    ):
        page.click(opener)
        page.wait_for_selector(ready)
        yield f"studio, dialog of {opener}", page
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="detached")
    page.set_input_files("input[type=file]", picture_file(folder))
    page.wait_for_selector(".or-honesty:visible")
    page.click("#or-sampling button")
    page.wait_for_selector("#or-temperature input:visible")
    yield "studio, own picture and sampling", page
    page.fill("#or-question textarea", TOO_LONG)
    page.wait_for_selector(".or-budget[data-over]")
    yield "studio, question too long", page
    page.fill("#or-question textarea", "")
    page.click("#or-reason")
    page.wait_for_selector(".or-part-line .or-error:visible")
    yield "studio, no question", page
    page.close()
    yield from _troubled(window)


def branch_states(window: Studio) -> Iterator[State]:
    page = window.page()
    page.click("#or-reason")
    status(page, "completed")
    page.wait_for_selector(".or-verdict:not(:empty)")
    for _ in range(2):
        page.click("[aria-label='Edit step 2']")
        page.wait_for_selector(".or-ink[data-ready]")
        page.wait_for_selector(".or-ink-bar >> text=previous")
        page.fill(".or-edit-text", "I look once more.")
        yield "branches, editing", page
        before = page.evaluate("location.search")
        page.click("text=Go on from here")
        page.wait_for_function("(before) => location.search !== before", arg=before)
        status(page, "completed")
        page.wait_for_selector(".or-verdict:not(:empty)")
    page.wait_for_selector(".or-tree-row >> nth=2")
    page.focus(".or-tree-row >> nth=1")
    yield "branches, tree", page
    page.click("text=compare with parent")
    page.wait_for_selector(".or-compare-word:not(:empty)")
    yield "branches, comparing", page
    page.click(".or-compare-two >> text=Close")
    status(page, "completed")
    window.expected.append("404")
    lonely = window.page(f"/?compare=tr_nothing,{asked_in_address(page, 'trace')}")
    lonely.wait_for_selector(".or-compare-two > .or-notice:visible")
    yield "branches, one of two", lonely
    lonely.close()
    for _ in range(3):
        page.click("[aria-label='More samples']")
    page.click("#or-reason")
    page.wait_for_selector(".or-member .or-thumb >> nth=3")
    yield "samples, running", page
    page.wait_for_selector(".or-wall[data-status=completed]")
    page.click(".or-member-choose >> nth=0")
    page.click(".or-member-choose >> nth=1")
    yield "samples, finished", page
    page.click(".or-member-open >> nth=0")
    status(page, "completed")
    yield "samples, one of them", page
    page.close()
    page = window.page("/gallery", ready=".or-stack")
    yield "gallery, samples", page
    page.close()


def curation_states(window: Studio) -> Iterator[State]:
    """A rated trace, the gallery of curated traces, and many selected ones."""
    with Client(window.url) as client:
        first, second, third = _three_traces(client)
        client.update_trace(first, rating=1, tags=["clean box", "a tag of thirty-two letters, all"], note="Right.")
        client.update_trace(second, rating=-1, tags=[f"tag {number}" for number in range(9)])
    page = window.page(f"/?trace={first}")
    page.wait_for_selector(".or-curate:visible")
    page.click(".or-curate >> text=export")
    page.focus(".or-tag-input")
    yield "curation, a rated trace", page
    page.close()
    page = window.page("/gallery?tag=clean+box&rating=1", ready=CARDS)
    yield "curation, filtered", page
    page.close()
    page = window.page("/gallery", ready=CARDS)
    yield "curation, the gallery", page
    page.click(".or-gallery-bar >> text=Select")
    yield "curation, selecting", page
    for trace_id in (first, second, third):
        page.click(f"[data-trace={trace_id}]")
    page.click(".or-select-bar >> text=Export")
    yield "curation, three selected", page
    page.click(".or-select-bar >> text=Delete")
    page.wait_for_selector(".or-select-bar .sure")
    yield "curation, about to delete", page
    page.click(".or-select-bar >> text=Train")
    page.wait_for_selector("dialog .or-train-go")
    yield "curation, training", page
    page.close()
    page = window.page(f"/training#traces={first},{second}", ready=TRAINING)
    page.wait_for_selector(".or-editor:visible")
    yield "curation, a job on the selection", page
    page.close()


def _three_traces(client: Client) -> list[str]:
    """Ids of three new traces that have ended."""
    made = []
    for seed in range(3):
        task = client.task(slice="natural", seed=1_000_000_000 + seed)
        trace = client.create_trace(task["question"], [task["image_id"]], task_id=task["task_id"])
        for _ in client.events(trace["id"]):
            pass
        made.append(trace["id"])
    return made


def why_states(window: Studio) -> Iterator[State]:
    """The panel "Why?"; the scripted engine has no tokens, so their measures are scripted here."""
    window.expected.append("409")
    page = window.page()
    page.click("#or-reason")
    status(page, "completed")
    page.wait_for_selector(".or-verdict:not(:empty)")
    page.click("text=Why?")
    page.wait_for_selector(".or-why .or-error:has-text('stored no tokens')")
    page.click("text=Try it")
    page.wait_for_selector(".or-effects[aria-busy=true]")
    yield "why, without tokens, replacing", page
    page.reload()
    status(page, "completed")
    page.wait_for_selector(".or-verdict:not(:empty)")
    for measure, answer in MEASURES.items():
        page.route(f"**/v1/traces/*/{measure}", _answering(answer))
    page.click("text=Why?")
    page.wait_for_selector(".or-reliance li >> nth=3")
    page.click("text=each step’s reliance")
    page.click(".or-why >> text=likelihood")
    page.check(".or-why input[value=other]")
    page.check(".or-why input[value=reference]")
    page.click("text=Try it")
    page.wait_for_selector(".or-why-strip li >> nth=2")
    page.wait_for_selector(".or-effects[aria-busy=false]")
    yield "why, likelihood", page
    page.click(".or-why >> text=attention")
    page.select_option("[aria-label='Attention of']", "step")
    page.wait_for_selector(".or-why-strip li >> nth=3")
    yield "why, attention", page
    page.route(re.compile(r"/v1/traces/tr_\w+$"), _with_candidates)
    page.reload()
    page.click("[aria-label='Show step 1']")
    page.focus(".or-viewer")
    page.keyboard.press("c")
    page.wait_for_selector(".or-candidate >> nth=1")
    yield "studio, candidates", page
    page.close()


def _answering(answer: Any) -> Callable[[Any], None]:
    return lambda route: route.fulfill(json=answer)


def _troubled(window: Studio) -> Iterator[State]:
    window.expected += ["404", "503", "ERR_FAILED"]
    page = window.page("/?trace=tr_nothing")
    page.wait_for_selector(".or-notice:visible")
    yield "studio, unknown trace", page
    page.close()
    page = window.page("/?group=gr_nothing")
    page.wait_for_selector(".or-wall .or-notice:visible")
    yield "studio, unknown samples", page
    page.close()
    page = window.page("/?compare=tr_nothing")
    page.wait_for_selector(".or-compare-two > .or-notice:visible")
    yield "studio, comparison of one", page
    page.close()

    page = window.context.new_page()
    page.route("**/v1/tasks*", lambda route: route.abort())
    page.goto(window.url)
    page.wait_for_selector(".or-part-line .or-error:visible")
    yield "studio, no examples", page
    page.close()

    page = window.page()
    answer = {"phase": "starting", "detail": "the database does not answer yet", "version": "another"}
    for version in (page.get_attribute("[data-version]", "data-version"), "another"):
        answer["version"] = version
        page.route("**/readyz", lambda route: route.fulfill(status=503, json=answer))
        page.evaluate("window.dispatchEvent(new Event('online'))")
        wanted = "updated" if version == "another" else "starting"
        page.wait_for_selector(f".or-server[data-state={wanted}]:visible")
        yield f"studio, server {wanted}", page
    page.close()


def _with_candidates(route: Any) -> None:
    """Answer with the trace, its first image chosen between that and the question's."""
    trace = route.fetch().json()
    images = [trace["images"][0], {key: trace["steps"][0]["image"][key] for key in trace["images"][0]}]
    trace["steps"][0]["candidates"] = {"images": images, "scores": [None, -1.5], "chosen": 1}
    route.fulfill(json=trace)


def gallery_states(window: Studio) -> Iterator[State]:
    page = window.page("/gallery", ready=CARDS)
    yield "gallery", page
    page.click(".or-delete >> nth=0")
    page.wait_for_selector(".or-delete.sure")
    yield "gallery, about to delete", page
    page.evaluate("document.querySelector('.or-card .or-link').click()")
    page.wait_for_selector(".or-link.done")
    yield "gallery, link copied", page
    page.click(".or-card[data-trace] .or-card-open >> nth=0")
    page.wait_for_selector("dialog .or-viewer[data-status]:not([data-status=loading])")
    yield "gallery, a trace", page
    page.keyboard.press("Escape")
    page.fill("#or-filter-words textarea, #or-filter-words input", "no such words anywhere")
    page.wait_for_selector("text=No trace matches")
    yield "gallery, nothing found", page
    page.close()


def training_states(window: Studio, job: str) -> Iterator[State]:
    page = window.page(f"/training?job={job}", ready=TRAINING)
    page.wait_for_selector(".or-run[data-status=succeeded]")
    page.wait_for_selector(".or-sample-chip >> nth=1")
    for summary in page.locator(".or-details > summary:visible").all():
        summary.click()
    yield "training, a finished job", page
    page.set_input_files(".or-data input[type=file]", own_data())
    page.wait_for_selector(".or-data-rejections")
    yield "training, own data", page
    page.fill(".or-grader [name=answer]", "B) red")
    page.fill(".or-grader [name=reference]", "B")
    page.press(".or-grader [name=reference]", "Enter")
    page.wait_for_selector(".or-grader-verdict[data-tone]")
    yield "training, a graded answer", page
    page.close()
    window.expected += ["404", "422"]
    page = window.page("/training?job=no-such-job", ready=TRAINING)
    page.wait_for_selector("text=does not exist on this server")
    page.click("[data-preset=nano-perpo] .or-secondary")
    page.wait_for_selector(".or-editor pre >> nth=1")
    page.fill(".or-editor textarea", json.dumps(RECIPE | {"seed": -1, "magic": 1}))
    page.click("text=Start this job")
    page.wait_for_selector(".or-editor .or-error li")
    yield "training, editor with errors", page
    page.close()


def own_data() -> dict[str, Any]:
    """An upload: a question, a trace, a row of many images, and three bad rows."""
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (30, 120, 200)).save(buffer, "PNG")
    png = base64.b64encode(buffer.getvalue()).decode()
    question = {"question": "How many circles are there?", "image": png, "answer": 0}
    trace = trace_row("Where is it?", [buffer.getvalue()], [("I mark it.", buffer.getvalue())] * 3, "left")
    rows = [question, trace, {**question, "images": [png] * 40}, {**question, "image": "x.png"}, {"a": 1}]
    text = "".join(f"{json.dumps(row)}\n" for row in rows) + "{"
    return {"name": "mine.jsonl", "mimeType": "application/x-ndjson", "buffer": text.encode()}


def checkpoint_states(window: Studio) -> Iterator[State]:
    window.expected.append("422")
    page = window.page("/checkpoints?name=nano-omni-r1", ready=CHECKPOINTS)
    yield "checkpoints", page
    page.fill(".or-register input", "no/such-folder-here/at-all")
    page.click(".or-register button")
    page.wait_for_selector(".or-register .or-error:visible")
    page.click("text=Compare two")
    page.wait_for_selector(".or-compare-page .or-example[aria-pressed=true]")
    yield "checkpoints, comparing", page
    page.click("text=Ask both")
    for side in ("left", "right"):
        page.wait_for_selector(f"[data-side={side}] .or-viewer[data-status=completed]")
    yield "checkpoints, compared", page
    page.close()
