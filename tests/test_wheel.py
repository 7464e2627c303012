"""The wheel, built and installed elsewhere: it serves the page and answers a trace from any folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.client import Client
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[1]
ELSEWHERE = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMNI_R1_URL")}
IDENTITY = ("-c", "user.name=tests", "-c", "user.email=tests@example.org", "-c", "commit.gpgsign=false")
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git checkout with the files of this one, ignored files left out."""
    folder = tmp_path_factory.mktemp("source")
    listed = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    for name in filter(None, subprocess.check_output(listed, cwd=ROOT, text=True).split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "Build"]):
        subprocess.run(["git", *IDENTITY, *arguments], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(target), str(source)], check=True, env=ELSEWHERE, cwd=target)
    (found,) = target.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel that sees the packages of this one, but not this checkout."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "-q",
        str(wheel),
    ]
    subprocess.run(command, check=True, env=ELSEWHERE, cwd=folder)
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    (Path(site.strip()) / "packages-of-the-tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="module")
def url(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("anywhere")
    environment = ELSEWHERE | {"OMNI_R1_HOME": str(folder / "home")}
    command = [str(python.parent / "omni-r1"), "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            (found,) = re.findall(r"http://\S+", process.stdout.readline())
            wait_until_ready(found)
            yield found
        finally:
            process.terminate()


def wait_until_ready(url: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while httpx.get(f"{url}/readyz", trust_env=False).status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_wheel_answers_and_exports_a_trace(url: str) -> None:
    with Client(url) as client:
        task = client.task(slice="natural", seed=1_000_000_123)
        trace = client.create_trace(task["question"], images=[task["image_id"]])
        assert list(client.events(trace["id"]))[-1].type == "trace.completed"
        with client.export(trace["id"], format="html") as page:
            assert b"data:image/png;base64," in b"".join(page.chunks)


def test_wheel_serves_the_page_and_its_modules(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False) as client:
        page = client.get("/")
        assert page.status_code == 200
        left, seen = set(re.findall(r"/static/[\w/.-]+\.(?:js|css)", page.text)), set()
        assert left
        while left:
            path = left.pop()
            seen.add(path)
            answer = client.get(path)
            assert answer.status_code == 200, path
            if path.endswith(".js"):
                found = re.findall(r"""from\s+['"](\.{1,2}/[^'"]+)['"]""", answer.text)
                left |= {str(httpx.URL(path).join(other)) for other in found} - seen
        assert len(seen) > 20


def test_wheel_knows_its_commit(url: str, python: Path, source: Path) -> None:
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=source, text=True).strip()
    live = httpx.get(f"{url}/livez", trust_env=False).json()
    assert live["commit"] == head
    printed = subprocess.check_output([python.parent / "omni-r1", "--version"], text=True, env=ELSEWHERE)
    assert printed == f"omni-r1 {live['version']} ({head[:12]})\n"
