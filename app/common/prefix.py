"""The path prefix under which a proxy shows the studio, e.g. `/studio` in `https://lab.example/studio/`.

`app.forwarded` finds it for each request and puts it into the ASGI scope: `path` begins with it, as `root_path` says.
Addresses in JSON, and `next` of the login, are relative to the studio's address and never contain it. `Location`, links
in pages, cookies and `instance` of a problem do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

ROOT = "/~omni-r1~"  # stands for the prefix in the pages, which are built once, until one is sent
SCOPE_KEY = "omni_r1.prefix"  # unlike `root_path`, it does not grow where an app is mounted
MAX_CHARACTERS = 200
# The first folders of our own addresses: below such a prefix, `/gallery` could mean two pages.
OWN = frozenset(
    {
        *("v1", "static", "docs", "login", "livez", "readyz", "metrics"),
        *("gallery", "training", "runs", "checkpoints", "about"),
        *("assets", "svelte", "config", "gradio_api"),
    }
)
_FORM = re.compile(r"(?:/[A-Za-z0-9_~-]+)*")


def checked_prefix(text: str) -> str:
    """`text`, if it can be a prefix; "" is none. Raises ValueError with the rule that it breaks."""
    if text and not text.startswith("/"):
        raise ValueError(f"{text!r} must begin with /, as in /studio")
    if text.endswith("/"):
        raise ValueError(f"{text!r} must not end with /; use {text.rstrip('/') or 'an empty value'}")
    if not _FORM.fullmatch(text) or len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"{text!r} must be folders of letters, digits, _, ~ and -, as in /studio or /lab/studio, "
            f"at most {MAX_CHARACTERS} characters"
        )
    if text and (first := text.split("/")[1]) in OWN:
        raise ValueError(f"{text!r} begins like the studio's own address /{first}; choose another one")
    return text


def prefix_of(scope: Mapping[str, Any]) -> str:
    """The prefix of a request, "" without one."""
    found: str = scope.get(SCOPE_KEY, "")
    return found


def below(scope: Mapping[str, Any]) -> str:
    """The path of a request below the prefix: what the routes, logs and rules know."""
    found: str = scope["path"]
    return found[len(prefix_of(scope)) :]
