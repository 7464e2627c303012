"""Shared parts of the training loops: the optimiser, exact resume, metrics, atomic state.

A run lives in one folder: ``spec.json`` (settings, versions, commit), ``metrics.jsonl`` (one object per logged step)
and ``state.pt`` (the newest complete state). No decision depends on the clock: a stopped and resumed run takes the
same steps in the same order, bit-identical at an equal thread count.

Knows nothing of models, losses or data.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from model.build import provenance as build_provenance
from model.checkpoint.atomic import write_file
from training.jobs.disk import NO_WAIT, Disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from torch import Tensor

DECAYED = (nn.Linear, nn.Embedding, nn.Conv2d)


def adamw(
    modules: Iterable[nn.Module], *, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """AdamW over all trainable parameters; only the weights of `DECAYED` modules decay, norms and biases never."""
    decayed: dict[Tensor, None] = {}  # an ordered set: tied weights count once
    others: dict[Tensor, None] = {}
    for part in (part for module in modules for part in module.modules()):
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in decayed:
                (decayed if name == "weight" and isinstance(part, DECAYED) else others)[parameter] = None
    groups = [
        {"params": list(decayed), "weight_decay": weight_decay},
        {"params": list(others), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore a saved state.

    Raises:
        SettingsChanged: its parameter groups are not this version's.
    """
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise SettingsChanged(
            "the saved optimiser has other parameter groups: an earlier version let q/k norms decay; start a new run"
        ) from error


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class RunStopped(KeyboardInterrupt):
    """The run was stopped after it finished its step and saved its state (a bare KeyboardInterrupt saved nothing)."""


class StopFlag:
    """True after SIGINT or SIGTERM: the loop finishes its step, saves and exits. A second signal stops immediately.

    A request without a signal is none: a server that is started again signals workers which stop on their own already.
    """

    def __init__(self) -> None:
        self._stop = False
        self._signalled = False

    def request(self) -> None:
        """Request a stop without a signal."""
        self._stop = True

    def __enter__(self) -> StopFlag:
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            raise KeyboardInterrupt
        self._stop = self._signalled = True

    def __bool__(self) -> bool:
        return self._stop


def _save_tensors(state: dict[str, Any], path: Path) -> None:
    """`torch.save` that raises OSError on a full disk; its own writer raises RuntimeError on top."""
    try:
        with path.open("wb") as handle:
            torch.save(state, handle)
    except RuntimeError as error:
        cause = error.__context__
        raise cause if isinstance(cause, OSError) else OSError(f"{path.name}: {error}") from error


def provenance() -> dict[str, Any]:
    """Commit, versions and machine of this run, to be written beside its results."""
    return {
        **build_provenance(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


class SettingsChanged(ValueError):
    """A run cannot resume with different settings."""


class RunFolder:
    """The folder of one run: its specification, its metrics and its newest state."""

    def __init__(
        self,
        path: Path,
        spec: dict[str, Any],
        *,
        resume: bool,
        defaults: dict[str, Any] | None = None,
        upgrade: Callable[[dict[str, Any]], dict[str, Any]] = dict,
        disk: Disk = NO_WAIT,
    ) -> None:
        """Open the folder.

        Args:
            path: created if missing.
            spec: requested settings.
            resume: keep existing state and metrics.
            defaults: of settings that older runs lack.
            upgrade: migrates the settings of earlier versions.
            disk: the folder's disk.

        Raises:
            SettingsChanged: the run to resume was started with other settings.
        """
        self.path = path
        self._disk = disk
        disk.write(lambda: path.mkdir(parents=True, exist_ok=True))
        self.state_path = path / "state.pt"
        spec_path = path / "spec.json"
        if resume and self.state_path.exists():
            old = {**(defaults or {}), **upgrade(self.recorded_spec(path) or {})}
            old, new = json.loads(json.dumps(old)), json.loads(json.dumps(spec))
            if old != new:
                changed = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
                raise SettingsChanged(
                    f"{path} was started with other settings ({', '.join(changed)}): use a new folder"
                )
        else:
            self.state_path.unlink(missing_ok=True)
            (path / "metrics.jsonl").unlink(missing_ok=True)
            text = json.dumps({"spec": spec, **provenance()}, indent=2, sort_keys=True)
            disk.replace(spec_path, lambda p: p.write_text(text + "\n"))
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._log_failed = False

    @staticmethod
    def recorded_spec(path: Path) -> dict[str, Any] | None:
        """Settings of the recorded run in a folder, or None if there is nothing to resume."""
        if not (path / "state.pt").exists():
            return None
        spec: dict[str, Any] = json.loads((path / "spec.json").read_text())["spec"]
        return spec

    @property
    def seconds(self) -> float:
        """Wall-clock seconds spent on this run, earlier sessions included."""
        return self._seconds_before + time.monotonic() - self._started

    def load_state(self) -> dict[str, Any] | None:
        """The newest saved state, or None for a new run."""
        if not self.state_path.exists():
            return None
        state: dict[str, Any] = torch.load(self.state_path, map_location="cpu", weights_only=True)
        self._seconds_before = state.pop("seconds", 0.0)
        self._drop_metrics_from(int(state["step"]))
        return state

    def save_state(self, state: dict[str, Any]) -> None:
        """Write the state atomically; ``state["step"]`` is the number of finished steps."""
        state = {**state, "seconds": self.seconds}
        write_file(self.state_path, lambda p: _save_tensors(state, p))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line to ``metrics.jsonl``; keys are ``group/name``."""
        row = {"step": step, "seconds": round(self.seconds, 2), **{k: round(float(v), 6) for k, v in metrics.items()}}
        try:
            self._disk.append(self.path / "metrics.jsonl", json.dumps(row) + "\n", sync=False)
        except OSError as error:  # a full disk must not end a run that can still learn
            if not self._log_failed:
                sys.stderr.write(f"metrics are being lost: {error}\n")
            self._log_failed = True

    def _drop_metrics_from(self, step: int) -> None:
        path = self.path / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            text = "".join(line + "\n" for line in kept)
            self._disk.replace(path, lambda p: p.write_text(text))


class FollowedRun(RunFolder):
    """The run that another process writes: its state can be read, and nothing is written."""

    def __init__(self, path: Path) -> None:
        self.path, self.state_path = path, path / "state.pt"

    def load_state(self) -> dict[str, Any] | None:
        """The newest saved state, mapped from the file, or None for a new run."""
        if not self.state_path.exists():
            return None
        state: dict[str, Any] = torch.load(self.state_path, map_location="cpu", mmap=True, weights_only=True)
        return state

    def save_state(self, state: dict[str, Any]) -> None:
        """Nothing: the other process saves."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing: the other process logs."""


def _step_of(line: str) -> float:
    """The step of a row of metrics; infinity for half a line of a killed run."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
