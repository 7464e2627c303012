"""Literals and bounds of the contract, shared by server, client and command line."""

from __future__ import annotations

from typing import Literal, get_args

Mode = Literal["auto", "step"]
Fit = Literal["crop", "pad"]
Drain = Literal["wait", "cancel"]
Slice = Literal["natural", "structured", "diagrammatic", "operational"]
Level = Literal["normal", "hard", "1", "2", "3", "4", "5", "6", "7", "8"]  # of a task
Status = Literal["queued", "running", "paused", "completed", "cancelled", "failed", "interrupted"]
TERMINAL: frozenset[str] = frozenset({"completed", "cancelled", "failed", "interrupted"})
TERMINAL_EVENTS = frozenset({"trace.completed", "trace.failed", "trace.cancelled"})
VerdictWord = Literal["right", "wrong"]
ExportFormat = Literal["json", "jsonl", "zip", "html"]
GROUP_END = "group.completed"
GroupKind = Literal["samples", "branches", "intervention"]
Replacement = Literal["previous", "blank", "question", "other", "reference", "none"]
GroupStatus = Literal["running", "paused", "completed"]
JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled", "interrupted"]
JOB_TERMINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled", "interrupted"})
PAGES = ("gallery", "training", "runs", "checkpoints", "about")  # in addition to the studio at /
Role = Literal["read", "ask", "train", "admin"]  # of a key; each may do what those before it may
ROLES: tuple[Role, ...] = get_args(Role)
Method = Literal["pesft", "perpo", "zero", "benchmark", "pipeline"]
DataMethod = Literal["pesft", "perpo", "zero", "benchmark"]  # what a data set is checked for

MAX_SEED = 2**53 - 1
MAX_TEMPERATURE = 5
MAX_DRAWN_IMAGES = 64  # per trace
MAX_STEPS = 64  # that a branch keeps
MAX_SAMPLES = 16  # per request
MAX_CANDIDATES = 8  # of an image
MAX_PAGE = 100  # entries of a list
