"""`omni-r1 train METHOD` and `omni-r1 jobs`: training on a running server, over HTTP only."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast, get_args

from tqdm import tqdm

from app.cli.terminal import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, CommandError, clean, one_line, remark, table, write
from app.client import BadInput, Client
from app.client.sse import Event
from app.client.types import Job
from app.contract.words import DataMethod
from training.spec.spec import PRESETS

# Base checkpoints of methods without their own preset, unless --base is given.
BASES = {"zero": "nano-base", "benchmark": "nano-omni-r1"}
ZERO = PRESETS["nano-zero"]
SHOWN_METRICS = ("loss/ce", "reward/total", "reward/accuracy", "accuracy/all", "zero/accepted_share")


def train(args: Namespace) -> int:
    """Starts a job and follows it to its end, unless --detach."""
    with Client(args.url) as client:
        try:
            spec = build_spec(args)
            if args.data:
                spec["data"] = _upload(client, args.data, args.method)
                _change(spec, [change for change in args.set if change.startswith("data.")])
            job = client.create_job(spec)
        except BadInput as error:
            raise CommandError(_every_field(error), EXIT_BAD_INPUT) from None
        if args.detach:
            write(json.dumps(job, ensure_ascii=False, indent=2) + "\n" if args.json else f"{job['id']}\n")
            return EXIT_OK
        remark(f"job {job['id']}; it keeps running on the server if this command exits")
        return _follow(client, job["id"], as_json=args.json)


def _upload(client: Client, file: str, method: str) -> dict[str, Any]:
    """Uploads a file, remarks on its check for the method, and returns the spec's `data`."""
    checked = cast("DataMethod | None", method if method in get_args(DataMethod) else None)
    uploaded = client.upload_dataset(file, method=checked)
    usable = "" if checked is None else f", {uploaded['usable_for'][checked]:,} usable"
    remark(f"uploaded {uploaded['rows']:,} rows of {file}{usable}")
    for one in uploaded["rejected"]["first"][:3] if checked else ():
        remark(f"rejected {one['where']}: {one['detail']} ({one['code']})")
    return {"source": "jsonl", "path": uploaded["path"]}


def build_spec(args: Namespace) -> dict[str, Any]:
    """Builds the spec from the arguments: a preset or --spec, overridden by single options."""
    spec = _given(args.spec) if args.spec else _preset(args.method, args.preset)
    if spec.setdefault("method", args.method) != args.method:
        raise _bad(f"the spec is for {spec['method']!r}: omni-r1 train {spec['method']}")
    direct = {"base_checkpoint": args.base, "seed": args.seed, "output_name": args.output_name, "gpu": args.gpu}
    spec |= {name: value for name, value in direct.items() if value is not None}
    if args.activate:
        spec["activate"] = True
    _change(spec, args.set)
    return spec


def _change(spec: dict[str, Any], changes: Sequence[str]) -> None:
    """Applies NAME=VALUE of --set."""
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not name:
            raise _bad(f"--set expects NAME=VALUE, e.g. hyperparameters.steps=40, not {change!r}")
        _put(spec, name.split("."), _value(text))


def jobs_list(args: Namespace) -> int:
    """Lists the newest jobs."""
    with Client(args.url) as client:
        page = client.jobs(limit=args.limit, status=args.status, method=args.method, name=args.name, tag=args.tag)
    if args.json:
        write(json.dumps(page["data"], ensure_ascii=False, indent=2) + "\n")
        return EXIT_OK
    header = ["job", "name", "method", "status", "progress", "from", "started"]
    write(table(header, [_row(job) for job in page["data"]]))
    return EXIT_OK


def show(args: Namespace) -> int:
    """Shows a job."""
    with Client(args.url) as client:
        job = client.job(args.id)
    write(json.dumps(job, ensure_ascii=False, indent=2) + "\n" if args.json else _text(job))
    return EXIT_OK


def watch(args: Namespace) -> int:
    """Follows a job to its end; the exit code reflects its status."""
    with Client(args.url) as client:
        return _follow(client, args.id, as_json=args.json)


def cancel(args: Namespace) -> int:
    """Stops a job at its next step boundary."""
    with Client(args.url) as client:
        job = client.cancel_job(args.id)
        if args.wait and job["status"] == "running":
            for _ in client.job_events(args.id):
                pass
            job = client.job(args.id)
    stops = " and stops at the end of this step" if job["cancel_requested"] else ""
    remark(f"job {job['id']} is {job['status']}{stops}")
    return EXIT_OK


def resume(args: Namespace) -> int:
    """Resumes an ended job."""
    with Client(args.url) as client:
        seen = client.job(args.id)["last_event"]
        job = client.resume_job(args.id)
        if args.detach:
            remark(f"job {job['id']} is {job['status']}")
            return EXIT_OK
        return _follow(client, args.id, after=seen, as_json=args.json)


def continue_(args: Namespace) -> int:
    """Goes on from a finished job, as a new one."""
    with Client(args.url) as client:
        job = client.continue_job(args.id, args.steps, name=args.name, output_name=args.output_name)
        continues = job["continues"]
        assert continues is not None
        for line in continues["differs"]:
            remark(line)
        if args.detach:
            write(json.dumps(job, ensure_ascii=False, indent=2) + "\n" if args.json else f"{job['id']}\n")
            return EXIT_OK
        remark(f"job {job['id']} goes on after step {continues['steps']}")
        return _follow(client, job["id"], as_json=args.json)


def label(args: Namespace) -> int:
    """Names, tags or annotates a job."""
    given = {"name": args.name, "tags": args.tag, "note": args.note}
    change = {key: value for key, value in given.items() if value is not None}
    if "tags" in change:
        change["tags"] = [tag for tag in args.tag if tag]  # --tag "" removes them all
    if not change:
        raise _bad("give --name, --tag or --note")
    with Client(args.url) as client:
        job = client.update_job(args.id, **{**change, **({"name": None} if args.name == "" else {})})
    write(json.dumps(job, ensure_ascii=False, indent=2) + "\n" if args.json else _text(job))
    return EXIT_OK


def delete(args: Namespace) -> int:
    """Deletes an ended job; its checkpoints stay."""
    with Client(args.url) as client:
        client.delete_job(args.id)
    remark(f"job {args.id} deleted; its checkpoints stay")
    return EXIT_OK


# ---- following


def _follow(client: Client, job_id: str, *, after: int = 0, as_json: bool = False) -> int:
    bars = _Bars()
    try:
        for event in client.job_events(job_id, after):
            if as_json:
                write(json.dumps({"id": event.seq, "type": event.type, "data": event.data}) + "\n")
            else:
                bars.show(event)
    except KeyboardInterrupt:
        bars.close()
        remark(f"the job continues: omni-r1 jobs watch {job_id} (or cancel)")
        raise
    finally:
        bars.close()
    job = client.job(job_id)
    if job["status"] != "succeeded":
        error = job["error"]
        if error and error.get("log_tail") and not as_json:
            lines = "".join(f"  {line}\n" for line in error["log_tail"])
            sys.stderr.write(f"last lines of the worker's log:\n{clean(lines)}")
        if job["resumable"]:
            remark(f"to resume from its saved state: omni-r1 jobs resume {job_id}")
        reason = f": {error['detail']} ({error['code']})" if error else ""
        raise CommandError(f"job {job_id} is {job['status']}{reason}", EXIT_FAILED)
    if not as_json:
        write(_text(job))
    return EXIT_OK


class _Bars:
    """A progress bar per stage on a terminal; elsewhere only important lines."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage: str | None = None

    def show(self, event: Event) -> None:
        data = event.data
        if event.type == "job.status":
            self._say(f"{data['status']}")
        elif event.type == "progress":
            self._progress(data)
        elif event.type == "metrics":
            self._metrics(data)
        elif event.type == "checkpoint":
            self._say(f"checkpoint {data['name']}")
        elif event.type == "warning":
            self._say(f"warning {data.get('code')}: {data.get('detail')}")
        elif event.type == "log":
            self._say(str(data.get("line", "")))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _progress(self, data: Mapping[str, Any]) -> None:
        stage, step, total = data.get("stage"), data.get("step") or 0, data.get("total")
        if self._bar is None or stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = tqdm(total=total, desc=one_line(str(stage)), unit="step", file=sys.stderr, disable=None)
        self._bar.total = total
        self._bar.update(step - self._bar.n)

    def _metrics(self, data: Mapping[str, Any]) -> None:
        values = data.get("values") or {}
        shown = {
            name.partition("/")[2]: f"{values[name]:.4g}" for name in SHOWN_METRICS if values.get(name) is not None
        }
        if self._bar is not None and shown:
            self._bar.set_postfix(shown, refresh=False)

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        remark(text)


# ---- specifications


def _preset(method: str, name: str | None) -> dict[str, Any]:
    if name is None:
        name = next((p.name for p in PRESETS.values() if p.card and p.spec["method"] == method), None)
        if name is None:
            spec = {"base_checkpoint": BASES.get(method, "nano-base"), "data": {"source": "unitasks"}}
            # Zero alone starts as in the pipeline.
            return spec | ({"hyperparameters": dict(ZERO.spec["hyperparameters"]["zero"])} if method == "zero" else {})
    if name not in PRESETS:
        raise _bad(f"unknown preset {name!r}; presets: {', '.join(PRESETS)}")
    found: dict[str, Any] = json.loads(json.dumps(PRESETS[name].spec))
    return found


def _given(text: str) -> dict[str, Any]:
    if text == "-":
        text = sys.stdin.read()
    elif not text.lstrip().startswith("{"):
        try:
            text = Path(text).read_text("utf-8")
        except (OSError, ValueError) as error:
            raise _bad(f"cannot read {text}: {getattr(error, 'strerror', None) or error}") from None
    try:
        spec = json.loads(text)
    except ValueError as error:
        raise _bad(f"the spec is not valid JSON: {error}") from None
    if not isinstance(spec, dict):
        raise _bad("the spec must be a JSON object")
    return spec


def _value(text: str) -> Any:
    with suppress(ValueError):
        return json.loads(text)
    return text


def _put(spec: dict[str, Any], names: list[str], value: Any) -> None:
    at = spec
    for name in names[:-1]:
        inner = at.get(name)
        if not isinstance(inner, dict):
            inner = at[name] = {}
        at = inner
    at[names[-1]] = value


def _bad(detail: str) -> CommandError:
    return CommandError(detail, EXIT_BAD_INPUT)


def _every_field(error: BadInput) -> str:
    """All invalid fields, not only the first; of an unusable data set the first reason."""
    if error.code == "unusable_dataset":
        return str(error)
    fields = [
        f"{entry['path'].removeprefix('body.')}: {entry['message']}" for entry in error.problem.get("errors") or []
    ]
    return "; ".join(fields) or str(error)


# ---- text output


def _row(job: Job) -> list[str]:
    return [
        job["id"],
        one_line(job["name"] or "-"),
        job["method"],
        job["status"],
        _progress(job),
        str(job["spec"].get("base_checkpoint", "")),
        (job["started_at"] or "")[:16].replace("T", " "),
    ]


def _progress(job: Job) -> str:
    progress = job["progress"]
    if progress is None:
        return "-"
    return f"{progress['stage']} {progress['step']}/{progress['total']}"


def _text(job: Job) -> str:
    return "".join(f"{line}\n" for line in _lines(job))


def _lines(job: Job) -> Iterator[str]:
    yield f"{job['id']}  {job['method']} from {job['spec'].get('base_checkpoint')}: {job['status']}"
    for name, text in (("name", job["name"]), ("tags", ", ".join(job["tags"])), ("note", job["note"])):
        if text:
            yield f"{name:<12} {one_line(text)}"
    if job["status"] == "running":
        yield f"progress     {_progress(job)}"
    if waiting := job["progress"] and job["progress"].get("waiting"):
        yield f"waiting      for {waiting['needed_bytes']:,} bytes of disk space, {waiting['free_bytes']:,} free"
    if job["resumable"]:
        yield f"resume       omni-r1 jobs resume {job['id']}"
    if job["error"]:
        yield f"error        {job['error']['code']}: {one_line(job['error']['detail'])}"
    for made in job["checkpoints"]:
        yield f"checkpoint   {made['name']}"
    activated = (job["result"] or {}).get("activated")
    if activated:
        yield f"active       {activated['checkpoint']}, version {activated['weight_version']}"
    for name, value in sorted(job["metrics"].items()):
        yield f"{name:<28} {'-' if value is None else format(value, '.5g')}"
