"""`omni-r1 train METHOD` and `omni-r1 jobs`: training on a running server, over HTTP only."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any, cast, get_args

from tqdm import tqdm

from app.cli.specs import bad, build_spec, change, read_spec
from app.cli.terminal import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, CommandError, clean, one_line, remark, table, write
from app.client import BadInput, Client
from app.client.sse import Event
from app.client.types import Job
from app.client.types_runs import Sweep, SweepEntry
from app.contract.words import DataMethod

PROBE_STEPS = 3  # of the job that measures the time of a step
SHOWN_METRICS = ("loss/ce", "reward/total", "reward/accuracy", "accuracy/all", "zero/accepted_share")


def train(args: Namespace) -> int:
    """Starts a job and follows it to its end, unless --detach."""
    with Client(args.url) as client:
        try:
            spec = build_spec(args)
            if args.data:
                spec["data"] = _data(client, args.data, args.method)
                change(spec, [change for change in args.set if change.startswith("data.")])
            if args.estimate:
                return _estimate(client, spec)
            job = client.create_job(spec)
        except BadInput as error:
            raise CommandError(_every_field(error), EXIT_BAD_INPUT) from None
        if args.detach:
            write(json.dumps(job, ensure_ascii=False, indent=2) + "\n" if args.json else f"{job['id']}\n")
            return EXIT_OK
        remark(f"job {job['id']}; it keeps running on the server if this command exits")
        return _follow(client, job["id"], as_json=args.json)


def _estimate(client: Client, spec: dict[str, Any]) -> int:
    """Prints the expected time; measures three steps first if nothing like it has run here."""
    found = client.estimate_job(spec)
    if found["seconds"] is None and found["steps"] is not None:
        remark("nothing like it has run here: measuring three steps")
        short = {"steps": PROBE_STEPS, "log_every": 1}
        probe = client.create_job(
            {**spec, "name": "probe", "output_name": None, "activate": False}
            | {"hyperparameters": {**spec.get("hyperparameters", {}), **short}}
        )
        for _ in client.job_events(probe["id"]):
            pass
        found = client.estimate_job(spec)
    if found["seconds"] is None:
        raise CommandError("the time is unknown: only jobs with a number of steps can be estimated", EXIT_FAILED)
    write(
        f"{found['seconds']:.0f} s: {found['start_s']:.0f} s, then {found['steps']} steps of {found['step_s']:.2g} s\n"
    )
    return EXIT_OK


def _data(client: Client, file: str, method: str) -> dict[str, Any]:
    """The spec's `data`: an address on the hub, or a file, which is uploaded and checked for the method."""
    from training.data.hub import is_hub

    if is_hub(file):
        return {"source": "jsonl", "path": file}
    checked = cast("DataMethod | None", method if method in get_args(DataMethod) else None)
    uploaded = client.upload_dataset(file, method=checked)
    usable = "" if checked is None else f", {uploaded['usable_for'][checked]:,} usable"
    remark(f"uploaded {uploaded['rows']:,} rows of {file}{usable}")
    for one in uploaded["rejected"]["first"][:3] if checked else ():
        remark(f"rejected {one['where']}: {one['detail']} ({one['code']})")
    return {"source": "jsonl", "path": uploaded["path"]}


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
    wanted = {key: value for key, value in given.items() if value is not None}
    if "tags" in wanted:
        wanted["tags"] = [tag for tag in args.tag if tag]  # --tag "" removes them all
    if not wanted:
        raise bad("give --name, --tag or --note")
    with Client(args.url) as client:
        job = client.update_job(args.id, **{**wanted, **({"name": None} if args.name == "" else {})})
    write(json.dumps(job, ensure_ascii=False, indent=2) + "\n" if args.json else _text(job))
    return EXIT_OK


def delete(args: Namespace) -> int:
    """Deletes an ended job; its checkpoints stay."""
    with Client(args.url) as client:
        client.delete_job(args.id)
    remark(f"job {args.id} deleted; its checkpoints stay")
    return EXIT_OK


# ---- sweeps


def sweep(args: Namespace) -> int:
    """Starts a job for each combination of a grid."""
    given = read_spec(args.file)
    if unknown := sorted(given.keys() - {"name", "spec", "grid"}):
        raise bad(f"unknown keys: {', '.join(unknown)}; a sweep has name, spec and grid")
    with Client(args.url) as client:
        try:
            made = client.create_sweep(
                given.get("spec", {}), given.get("grid", {}), name=args.name or given.get("name")
            )
        except BadInput as error:
            raise CommandError(_every_field(error), EXIT_BAD_INPUT) from None
        if not args.detach:
            for job in made["jobs"]:
                remark(f"{job['id']}  {_values(job)}")
                for _ in client.job_events(job["id"]):
                    pass
            made = client.sweep(made["id"])
    return _show_sweep(made, as_json=args.json)


def sweeps_list(args: Namespace) -> int:
    """Lists the newest sweeps."""
    with Client(args.url) as client:
        page = client.sweeps(limit=args.limit)
    if args.json:
        write(json.dumps(page["data"], ensure_ascii=False, indent=2) + "\n")
        return EXIT_OK
    rows = [[one["id"], one["name"] or "-", _counts(one), one["created_at"][:16]] for one in page["data"]]
    write(table(["sweep", "name", "runs", "created"], rows))
    return EXIT_OK


def sweeps_show(args: Namespace) -> int:
    """Shows a sweep as one table."""
    with Client(args.url) as client:
        return _show_sweep(client.sweep(args.id), as_json=args.json)


def sweeps_cancel(args: Namespace) -> int:
    """Stops the jobs of a sweep that have not ended."""
    with Client(args.url) as client:
        return _show_sweep(client.cancel_sweep(args.id), as_json=args.json)


def sweeps_resume(args: Namespace) -> int:
    """Queues the jobs of a sweep again that did not succeed."""
    with Client(args.url) as client:
        return _show_sweep(client.resume_sweep(args.id), as_json=args.json)


def _show_sweep(made: Sweep, *, as_json: bool) -> int:
    if as_json:
        write(json.dumps(made, ensure_ascii=False, indent=2) + "\n")
    else:
        metrics = [key for key in SHOWN_METRICS if any(key in job["metrics"] for job in made["jobs"])]
        rows = [
            [job["id"], job["status"], _values(job), *(_number(job["metrics"].get(key)) for key in metrics)]
            for job in made["jobs"]
        ]
        write(table(["job", "status", "values", *metrics], rows))
        remark(f"sweep {made['id']}: {_counts(made)}")
    return EXIT_OK if all(job["status"] not in ("failed", "interrupted") for job in made["jobs"]) else EXIT_FAILED


def _values(job: Job) -> str:
    values = job["sweep"]["values"] if job["sweep"] else {}
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in values.items())


def _counts(made: Sweep | SweepEntry) -> str:
    return ", ".join(f"{count} {status}" for status, count in made["counts"].items())


def _number(value: float | None) -> str:
    return "-" if value is None else format(value, ".4g")


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


def _disk_space(waiting: Mapping[str, Any]) -> str:
    return f"for {waiting['needed_bytes']:,} bytes of disk space, {waiting['free_bytes']:,} free"


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
        disk = waiting["for"] == "disk"
        yield f"waiting      {_disk_space(waiting) if disk else waiting['detail']}"
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
