"""The API's fields as options of the command line: an error names ``--after``, not ``body.after_step``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from app.client import ApiError

# Paths of fields, as regular expressions, and what stands for them on the command line.
_OPTIONS = (
    (r"body\.n", "--n"),
    (r"body\.question", "QUESTION"),
    (r"body\.images\.\d+\.fit", "--fit"),
    (r"body\.images(\..*)?", "IMAGE"),
    (r"body\.task_id", "TASK_ID"),
    (r"body\.after_step", "--after"),
    (r"body\.edits\.(?P<edit>\d+)\.text", "--text"),
    (r"body\.edits\.(?P<edit>\d+)\.image(\..*)?", "--image"),
    (r"body\.edits(\.(?P<edit>\d+)(\..*)?)?", "--text or --image"),
    (r"body\.then_text", "--then"),
    (r"body\.then", "--answer"),
    (r"body\.source", "SOURCE"),
    (r"body\.(sampling\.)?(?P<same>checkpoint|temperature|top_p|seed|max_new_tokens|max_images|name|drain)", ""),
    (r"query\.(?P<same>slice|seed|limit|status|method)", ""),
)


def message_of(error: ApiError, steps: Sequence[int] = ()) -> str:
    """The server's message with the option in place of the field; `steps`: those of a branch's edits, in order."""
    fields = error.problem.get("errors") or [{}]
    path = str(fields[0].get("path", ""))
    if not path or not error.detail.startswith(f"{path}: "):
        return error.detail
    option, detail = _option_of(path, steps), error.detail.removeprefix(f"{path}: ")
    return f"{option}: {detail}" if option else detail


def _option_of(path: str, steps: Sequence[int]) -> str:
    for pattern, option in _OPTIONS:
        found = re.fullmatch(pattern, path)
        if found is None:
            continue
        groups = found.groupdict()
        if "same" in groups:
            return f"--{groups['same'].replace('_', '-')}"
        edit = groups.get("edit")
        return option if edit is None or int(edit) >= len(steps) else f"{option} of step {steps[int(edit)]}"
    return re.sub(r"^(body|query)(\.|$)", "", path)
