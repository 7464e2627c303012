"""The viewer's plain modules, tested with node's own test runner (no packages)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S

HERE = Path(__file__).resolve().parent
STATIC = HERE.parents[1] / "static"
HOUSES = (
    "branches",
    "checkpoints",
    "compare",
    "curate",
    "runs",
    "shared",
    "studio",
    "tour",
    "training",
    "viewer",
    "wall",
    "why",
)
MODULES = [path for house in HOUSES for path in sorted(STATIC.glob(f"{house}/*.js"))]
STYLES = sorted(STATIC.glob("*.css")) + [path for house in HOUSES for path in sorted(STATIC.glob(f"{house}/*.css"))]


def test_modules_pass_their_own_tests() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed; the browser tests still run the modules")
    files = sorted(str(path) for path in (*HERE.glob("*.test.mjs"), *HERE.glob("*/*.test.mjs")))
    done = subprocess.run([node, "--test", *files], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"# pass [1-9]", done.stdout)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_modules_insert_data_as_text_only(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    for trap in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert trap not in source, f"{path.name} uses {trap}"


@pytest.mark.parametrize("path", [*MODULES, *STYLES], ids=lambda path: path.name)
def test_static_files_name_no_other_host(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    found = re.findall(r"https?://[^\s'\"`)]+", source)
    assert [url for url in found if not url.startswith("http://www.w3.org/")] == []
