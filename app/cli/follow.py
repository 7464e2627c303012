"""Follows traces to their end: one live, or the samples of a group with a tally of their answers."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.cli.terminal import EXIT_OK, clean, one_line, remark, table, write
from app.client import Client, OmniError
from app.client.sse import Event
from app.client.types import Group, StepImage, Trace


class TraceEnded(OmniError):
    """The trace ended without completing."""


def follow_all(client: Client, args: Namespace, traces: Sequence[Trace]) -> int:
    """Follows one trace, or the group of several, and prints the result as `args` ask. Returns the exit code."""
    group_id = traces[0].get("group_id")
    if group_id is not None:
        return _follow_group(client, args, group_id)
    return _follow_one(client, args, traces[0]["id"])


# ---- one trace


def _follow_one(client: Client, args: Namespace, trace_id: str) -> int:
    printer = _Printer(client, Path(args.out or f"trace-{trace_id}"), quiet=args.quiet or args.json)
    try:
        for event in client.events(trace_id):
            printer.show(event)
    except KeyboardInterrupt:
        with suppress(OmniError):
            client.cancel(trace_id)
        raise
    finally:
        printer.end_line()
    final = client.trace(trace_id)
    printer.folder.mkdir(parents=True, exist_ok=True)
    _save_json(printer.folder / "trace.json", final)
    if args.json:
        write(_json(final))
    return _conclude(final, printer.folder, quiet=args.quiet)


def _conclude(trace: Trace, folder: Path, *, quiet: bool) -> int:
    if trace["status"] != "completed":
        raise TraceEnded(f"the trace is {trace['status']}: {_why(trace)}")
    if quiet:
        write(clean(trace["answer"] or "") + "\n")
    verdict = trace.get("verdict")
    if verdict:
        drawings = f"{verdict['drawings_right']} of {verdict['drawings_total']} drawings right"
        remark(f"the answer is {verdict['answer']}, {drawings}")
    if trace["answer"] is None:
        remark("the model ended without an answer")
    total_ms = trace["timings"].get("total_ms")
    took = f" in {total_ms / 1000:.1f} s" if total_ms else ""
    remark(f"{trace['checkpoint']}, seed {trace['sampling'].get('seed')}{took}; images in {folder}/")
    return EXIT_OK


def _why(trace: Trace) -> str:
    return (trace.get("error") or {}).get("detail") or "no details"


class _Printer:
    """Prints a trace's events live: one line per step, the file of its image, the answer."""

    def __init__(self, client: Client, folder: Path, *, quiet: bool) -> None:
        self.folder = folder
        self._client = client
        self._quiet = quiet
        self._line_open = False
        self._fresh = False
        self._in_answer = False

    def show(self, event: Event) -> None:
        data = event.data
        if event.type == "trace.queued" and data.get("position"):
            remark(f"queued ({data['position']} ahead)")
        elif event.type == "step.kept":
            self._start_line(f"{data['step']}  ")
            how = "edited" if data.get("edited") else "kept"
            self._text(f"{data['text']} ({how})" if data["text"] else f"({how})")
            if data.get("image"):
                self._save(f"step-{data['step']}.png", data["image"]["url"])
        elif event.type == "step.started":
            self._start_line(f"{data['step']}  ")
        elif event.type == "text.delta":
            self._text(data["text"])
        elif event.type == "image.candidates":
            self._candidates(data)
        elif event.type == "image.completed":
            self._save(f"step-{data['step']}.png", data["url"])
        elif event.type == "answer.delta":
            if not self._in_answer:
                self._start_line("Answer: ")
                self._in_answer = True
            self._text(data["text"])

    def _candidates(self, data: dict[str, Any]) -> None:
        for number, image in enumerate(data["images"], 1):
            _save_image(self._client, self.folder, f"step-{data['step']}-candidate-{number}.png", image["url"])
        if not self._quiet:
            write(f" (candidate {data['chosen'] + 1} of {len(data['images'])})")
            self._line_open = True

    def end_line(self) -> None:
        if self._line_open:
            write("\n")
        self._line_open = False

    def _start_line(self, head: str) -> None:
        self.end_line()
        self._fresh = True
        if not self._quiet:
            write(head)
            self._line_open = True

    def _text(self, text: str) -> None:
        if self._quiet:
            return
        text = clean(text).replace("\n", " ")
        if self._fresh:
            text = text.lstrip()
        if text:
            self._fresh = False
            self._line_open = True
            write(text)

    def _save(self, name: str, url: str) -> None:
        path = _save_image(self._client, self.folder, name, url)
        if not self._quiet:
            write(f"{' ' if self._line_open else '   '}[{path}]")
            self._line_open = True


# ---- a group


def _follow_group(client: Client, args: Namespace, group_id: str) -> int:
    try:
        for _ in client.group_events(group_id):
            pass
    except KeyboardInterrupt:
        with suppress(OmniError):
            client.cancel_group(group_id)
        raise
    group = client.group(group_id)
    members = [client.trace(trace_id) for trace_id in group["trace_ids"]]
    if args.out:
        _save_group(client, group, members, Path(args.out))
    if args.json:
        write(_json(group))
    completed = [trace for trace in members if trace["status"] == "completed"]
    if not completed:
        raise TraceEnded(f"none of the {len(members)} traces completed: {_why(members[0])}")
    if args.quiet:
        write(clean(_most_frequent(group)) + "\n")
    elif not args.json:
        header = ["", "answer", "verdict", "seed", "trace"]
        write(table(header, [_row(number, trace) for number, trace in enumerate(members, 1)]) + "\n")
        write(_tally(group))
    if len(completed) < len(members):
        remark(f"{len(members) - len(completed)} of {len(members)} traces did not complete")
    first = members[0]
    if first["sampling"].get("temperature") == 0:
        remark("greedy samples are identical; set --temperature above 0 to vary them")
    where = f"; images in {args.out}/" if args.out else ""
    remark(f"{first['checkpoint']}, group {group_id}{where}")
    return EXIT_OK


def _row(number: int, trace: Trace) -> list[str]:
    answer = trace["answer"] if trace["status"] == "completed" else f"({trace['status']})"
    verdict = trace.get("verdict")
    return [
        str(number),
        _shown(answer),
        verdict["answer"] if verdict else "-",
        str(trace["sampling"].get("seed")),
        trace["id"],
    ]


def _tally(group: Group) -> str:
    rows = [
        [_shown(entry["answer"]), str(entry["count"]), f"{entry['share']:.0%}", str(entry.get("verdict") or "-")]
        for entry in group["tally"]
    ]
    return table(["answer", "count", "share", "verdict"], rows)


def _shown(answer: str | None) -> str:
    return "(no answer)" if answer is None else one_line(answer)


def _most_frequent(group: Group) -> str:
    return next((entry["answer"] for entry in group["tally"] if entry["answer"] is not None), "")


# ---- files


def _save_group(client: Client, group: Group, members: Sequence[Trace], folder: Path) -> None:
    for number, trace in enumerate(members, 1):
        own = folder / f"trace-{number}"
        own.mkdir(parents=True, exist_ok=True)
        _save_json(own / "trace.json", trace)
        for step in trace["steps"]:
            image: StepImage | None = step.get("image")
            if image is not None:
                _save_image(client, own, f"step-{step['index']}.png", image["url"])
    _save_json(folder / "group.json", group)


def _save_image(client: Client, folder: Path, name: str, url: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(client.fetch(url))
    return path


def _save_json(path: Path, value: object) -> None:
    path.write_text(_json(value), "utf-8")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
