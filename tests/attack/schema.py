"""schemathesis against a local server: does the API match `/openapi.json`?

`schemathesis.toml` at the root holds the configuration: all checks but `positive_data_acceptance`, and the content of
event streams. Runs without and with a key. Findings with their requests go to stderr.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

from tests.attack.report import Report, stop
from tests.e2e.real_server import ROOT, new_server

EXAMPLES = 30  # per route and phase
LIMIT_S = 900
KEY = "a-key-for-this-run"


def attack(folder: Path, report: Report, rng: random.Random, scale: float) -> None:
    for name, key in (("open", ""), ("locked", KEY)):
        (folder / name).mkdir()
        server = new_server(folder / name)
        if key:
            server.environment["OMNI_R1_API_KEY"] = key
        try:
            server.start()
            output = run(server.url, key, examples=max(1, round(EXAMPLES * scale)), seed=rng.randrange(2**31))
            failures, cases = found(output)
            if failures:
                report.finding("schema", output)
            report.row(f"schema_{name}_cases", cases, "count")
            report.row(f"schema_{name}_findings", failures, "count", limit=0)
            stop(server, report, f"schema_{name}")
        finally:
            server.kill()


def run(url: str, key: str, *, examples: int, seed: int) -> str:
    """The output of schemathesis."""
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{url}/openapi.json",
        f"--max-examples={examples}",
        f"--seed={seed}",
        "--request-timeout=60",
        "--no-color",
    ]
    if key:
        command += ["--header", f"Authorization: Bearer {key}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    return done.stdout + done.stderr


def found(output: str) -> tuple[int, int]:
    """The numbers of failures and errors in the last line, and of generated cases."""
    cases = re.search(r"(\d+) generated", output)
    if cases is None:
        raise RuntimeError(f"schemathesis did not run:\n{output[-3000:]}")
    last = output.strip().splitlines()[-1]
    return sum(int(number) for number in re.findall(r"(\d+) (?:failure|error)", last)), int(cases[1])
