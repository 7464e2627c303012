"""`omni-r1 doctor`: checks whether this machine can serve, or what a checkpoint folder is and which memory it needs.

Of the machine: one line per check, exit code 0 if nothing prevents serving. Checks are independent and suggest a
remedy; `note` deserves a look, `bad` prevents serving. Of a folder: exit code 0 if it fits, 1 if not, 2 if unusable.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from app.cli.terminal import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, CommandError, coloured, one_line, table, write
from app.common.settings import Settings, SettingsError, read_settings
from model.checkpoint.shards import SHIPPED

PACKAGES = ("torch", "transformers", "gradio", "fastapi", "sqlalchemy", "pillow")
LEAST_MEMORY = 1_000_000_000
LEAST_DISK = 500_000_000
GUESSABLE = 16
RAY_REACH_S = 2.0
GIB = 1 << 30
KINDS = {
    "checkpoint": "a checkpoint",
    "adapter": "a LoRA adapter",
    "wrapped": "the save of a wrapped model",
    "meta": "Meta's release layout",
    "pickles": "a folder of pickles",
    "unknown": "not a checkpoint",
}


@dataclass(frozen=True)
class Finding:
    """The result of one check; `bad` means that the studio cannot serve."""

    check: str
    state: Literal["ok", "note", "bad"]
    detail: str


def doctor(args: Namespace) -> int:
    """Prints all findings. Returns 0, or 1 if something prevents serving."""
    if args.folder is not None:
        return _doctor_of_folder(args)
    findings = list(examine(args.port))
    if args.json:
        write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        colours = {"ok": "\x1b[32m", "note": "\x1b[33m", "bad": "\x1b[31m"}
        lines = table(["check", "", "found"], [[f.check, f.state, f.detail] for f in findings]).splitlines()
        write(lines[0] + "\n")
        for finding, line in zip(findings, lines[1:], strict=True):
            write(f"{colours[finding.state]}{line}\x1b[0m\n" if coloured(sys.stdout) else f"{line}\n")
    return EXIT_FAILED if any(finding.state == "bad" for finding in findings) else EXIT_OK


def _doctor_of_folder(args: Namespace) -> int:
    from model.checkpoint.report import folder_report
    from model.checkpoint.shards import CheckpointError, find_local

    folder = Path(os.path.expanduser(args.folder))
    if not folder.is_dir():
        try:
            found = find_local(args.folder)
        except CheckpointError as error:
            raise CommandError(error.detail, EXIT_BAD_INPUT) from None
        if found is None:
            raise CommandError(f"{args.folder} is not on this machine: download it first", EXIT_BAD_INPUT)
        folder = found
    device = args.device or ("cuda" if args.memory_gb or _has_cuda() else "cpu")
    memory = int(args.memory_gb * GIB) if args.memory_gb else _memory_of(device)
    dtype = args.dtype or _dtype_of(device)
    report = folder_report(folder, device=device, dtype=dtype, memory=memory, quant=args.quant)
    if args.json:
        write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    else:
        write("".join(f"{line}\n" for line in _lines(report)))
    if report["problem"] is not None:
        return EXIT_BAD_INPUT
    return EXIT_OK if report["fits"] else EXIT_FAILED


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"{one_line(report['path'])}: {KINDS[report['kind']]}"
    if report["problem"] is not None:
        yield f"  cannot be served: {one_line(report['problem']['detail'])}"
        return
    yield (
        f"  {one_line(report['name'])}, {report['parameters'] / 1e9:.3g} billion parameters, template "
        f"{report['template']}, licence: {one_line(report['licence']) or 'not stated'}"
    )
    for lack in report["missing"]:
        yield f"  lacks {one_line(lack)}"
    form = report["dtype"] + (f" with matrices in {report['quant']}" if report["quant"] else "")
    yield f"on {report['device']} with {report['memory_bytes'] / GIB:.1f} GiB, in {form}:"
    rows = [
        ["weights", _gib(report["weights_bytes"])],
        ["peak while loading", _gib(report["loading_peak_bytes"])],
        ["KV of a token", f"{report['kv_bytes_per_token'] / 1024:,.0f} KiB"],
        ["longest context", f"{report['max_context']:,} tokens (its own: {report['context']:,})"],
        ["served context", f"{report['served_context']:,} tokens"],
        ["full traces at once", str(report["concurrent_traces"])],
        ["tokens of all traces", f"{report['kv_tokens']:,}"],
        *([f"to train, {name.replace('_', ' ')}", _gib(needed)] for name, needed in report["train"].items()),
        *([f"full pesft on each of {n}", _gib(needed)] for n, needed in report["train_full_pesft_per_device"].items()),
    ]
    yield from (f"  {name:<24} {value:>12}" for name, value in rows)
    if not report["fits"]:
        yield "it does not fit: fewer than 4,096 tokens of context are left"
    elif report["fits_twice"]:
        yield "it fits, and so do two of its size at once"
    elif report["twice_kv_mb"]:
        yield f"it fits; two of its size do with OMNI_R1_KV_MB={report['twice_kv_mb']}"
    else:
        yield "it fits; two of its size do not"


def _gib(count: int) -> str:
    return f"{count / GIB:,.1f} GiB"


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _memory_of(device: str) -> int:
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise CommandError("this machine has no such device: give its --memory-gb", EXIT_BAD_INPUT)
        return int(torch.cuda.mem_get_info()[1])
    import psutil

    return int(psutil.virtual_memory().total)


def _dtype_of(device: str) -> str:
    return "fp32" if device == "cpu" else "bf16"


def examine(port: int | None = None) -> Iterator[Finding]:
    """Runs all checks; a check that raises is itself a finding."""
    yield _python()
    yield _packages()
    try:
        settings = read_settings()
    except SettingsError as error:
        yield Finding("settings", "bad", str(error))
        return
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("device", lambda: _device(settings)),
        ("memory", _memory),
        ("threads", _threads),
        ("checkpoint", _checkpoint),
        ("home", lambda: _home(settings.home)),
        ("disk", lambda: _disk(settings.home)),
        ("database", lambda: _database(settings)),
        ("store", lambda: _store(settings)),
        *([("ray", _ray)] if "ray" in (settings.engine, settings.jobs) else []),
        ("key", lambda: _key(settings)),
        ("port", lambda: _port(settings.host, settings.port if port is None else port)),
    ]
    for name, check in checks:
        try:
            yield check()
        except Exception as error:
            yield Finding(name, "bad", f"{type(error).__name__}: {error}")


def _python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    return Finding("python", "ok" if sys.version_info >= (3, 11) else "bad", found)


def _packages() -> Finding:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("packages", "bad", f"missing: {', '.join(missing)}; run `make setup`")
    return Finding("packages", "ok", ", ".join(found))


def _device(settings: Settings) -> Finding:
    import torch

    from model.precision import cpu_has_bf16

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    found = ", ".join(name for name, available in there.items() if available)
    if settings.device != "auto" and not there[settings.device]:
        return Finding("device", "bad", f"OMNI_R1_DEVICE={settings.device} is not available; this machine has: {found}")
    precision = "has bf16 in hardware" if cpu_has_bf16() else "has no bf16 in hardware and uses fp32"
    return Finding("device", "ok", f"{found} (OMNI_R1_DEVICE={settings.device}); the CPU {precision}")


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    detail = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    return Finding("memory", "ok" if memory.available >= LEAST_MEMORY else "note", detail)


def _threads() -> Finding:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS")
    detail = f"{usable} usable cores, torch uses {torch.get_num_threads()}"
    return Finding("threads", "ok", detail + (f" (OMP_NUM_THREADS={limit})" if limit else ""))


def _checkpoint() -> Finding:
    folder = SHIPPED / "nano-omni-r1"
    if not (folder / "config.json").exists():
        return Finding("checkpoint", "bad", f"{folder} is missing; clone the repository again")
    from model.checkpoint.checkpoint import load_checkpoint

    started = time.perf_counter()
    loaded = load_checkpoint(folder)
    return Finding("checkpoint", "ok", f"{loaded.name} loads in {time.perf_counter() - started:.1f} s")


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _home(home: Path) -> Finding:
    place = _existing(home)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = error.strerror or error
        return Finding("home", "bad", f"cannot write in {place} ({reason}); set OMNI_R1_HOME to a folder you own")
    return Finding("home", "ok", str(home) if place == home else f"{home} (created at the first start)")


def _disk(home: Path) -> Finding:
    free = shutil.disk_usage(_existing(home)).free
    return Finding("disk", "ok" if free >= LEAST_DISK else "note", f"{free / 1e9:.1f} GB free")


def _database(settings: Settings) -> Finding:
    if not settings.sqlalchemy_url.startswith("postgresql"):
        return Finding("database", "ok", "SQLite")
    from app.runtime import reach_database

    place, problem = reach_database(settings.sqlalchemy_url)
    if problem is not None:
        return Finding("database", "bad", f"{place} is unavailable: {problem}")
    return Finding("database", "ok", f"{place} responds")


def _store(settings: Settings) -> Finding:
    if settings.store is None:
        return Finding("store", "ok", "none (OMNI_R1_STORE)")
    from app.operate import store_problem

    problem = store_problem(settings)
    if problem is not None:
        return Finding("store", "bad", problem)
    return Finding("store", "ok", f"{settings.store} takes and returns files")


def _ray() -> Finding:
    from model.cluster.words import reach, why_refused

    try:
        found = f"Ray {version('ray')}"
    except PackageNotFoundError:
        return Finding("ray", "bad", "OMNI_R1_ENGINE=ray needs Ray: pip install 'omni-r1-studio[ray]'")
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Finding("ray", "ok", f"{found}, starts a cluster on this machine")
    try:
        reach(address, RAY_REACH_S)
    except (OSError, ValueError) as error:
        return Finding("ray", "bad", f"RAY_ADDRESS={address} cannot be reached: {why_refused(error)}")
    return Finding("ray", "ok", f"{found}; {address} is listening")


def _key(settings: Settings) -> Finding:
    if settings.api_key is None:
        return Finding("key", "ok", f"none required; {settings.host} is reachable from this machine only")
    if len(settings.api_key.get_secret_value()) < GUESSABLE:
        return Finding("key", "note", "OMNI_R1_API_KEY is short enough to be guessed; use a long random value")
    return Finding("key", "ok", "OMNI_R1_API_KEY is required")


def _port(host: str, port: int) -> Finding:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            detail = f"{host}:{port} cannot be bound ({error.strerror or error}): another server may be running"
            return Finding("port", "note", detail)
    return Finding("port", "ok", f"{host}:{port} is free")
