"""Dockerfile, docker-compose.yml and the container's start script, tested without Docker."""

from __future__ import annotations

import fnmatch
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.common.settings import PREFIX, Settings
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[1]
START = ROOT / "containers" / "start"
URL = "postgresql://omni_r1@omni-r1-postgres/omni_r1"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, with continued lines joined and without comments."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    pairs = [line.strip().split(None, 1) for line in lines]
    return [(word, " ".join(rest.split())) for word, rest in pairs]


def all_of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def environment(service: dict[str, Any]) -> dict[str, Any]:
    return dict(service["environment"])


# ---- image


def test_dockerfile_uses_known_instructions() -> None:
    known = {
        "FROM",
        "ARG",
        "ENV",
        "WORKDIR",
        "COPY",
        "RUN",
        "USER",
        "VOLUME",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "CMD",
    }
    assert {word for word, _ in instructions()} <= known
    assert instructions()[0][0] == "FROM"
    for run in all_of("RUN"):
        assert subprocess.run(["sh", "-n", "-c", run], check=False).returncode == 0


def test_image_is_a_tested_slim_python() -> None:
    (base,) = all_of("FROM")
    found = re.fullmatch(r"python:(\d+\.\d+)-slim(-\w+)?", base)
    assert found
    assert tuple(map(int, found[1].split("."))) >= (3, 11)


def test_server_user_owns_only_the_volume() -> None:
    order = [word for word, _ in instructions()]
    (user,) = all_of("USER")
    number, _, group = user.partition(":")
    assert number.isdecimal(), "a name does not show Kubernetes that it is not root"
    assert int(number) > 0
    assert group == "0"
    assert any(f"useradd --uid {number} --gid 0 " in run for run in all_of("RUN"))
    assert "RUN" not in order[order.index("USER") :]
    assert "COPY" not in order[order.index("USER") :]
    assert all_of("VOLUME") == ["/data"]


def test_group_0_can_write_the_volume() -> None:
    """OpenShift runs images as an arbitrary user with group 0."""
    made = [words for run in all_of("RUN") for words in map(shlex.split, run.split("&&")) if words[-1:] == ["/data"]]
    (install,) = [words for words in made if words[0] == "install"]
    options = dict(itertools.pairwise(install))
    assert options["-g"] in ("0", "root")
    mode = int(options["-m"], 8)
    assert mode & 0o070 == 0o070
    assert mode & 0o007 == 0


def test_torch_comes_from_the_cpu_index_by_default() -> None:
    assert "TORCH_INDEX=https://download.pytorch.org/whl/cpu" in all_of("ARG")
    install = next(run for run in all_of("RUN") if "pip install" in run)
    assert '--extra-index-url "$TORCH_INDEX"' in install
    assert "-c constraints.txt" in install
    order = [f"{word} {rest}" for word, rest in instructions()]
    assert order.index("ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu") < order.index(f"RUN {install}")


def test_image_contains_no_key_and_known_settings_only() -> None:
    values = dict(pair.split("=", 1) for env in all_of("ENV") for pair in shlex.split(env))
    ours = {name: value for name, value in values.items() if name.startswith(PREFIX)}
    assert ours == {"OMNI_R1_HOME": "/data", "OMNI_R1_HOST": "0.0.0.0", "OMNI_R1_PORT": "7860"}
    assert all_of("EXPOSE") == ["7860"]
    assert not [rest for rest in all_of("ARG") if "KEY" in rest or "PASSWORD" in rest]


def test_copied_files_exist_in_the_build_context() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    tracked = set(
        subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    )
    copied = [word for rest in all_of("COPY") for word in rest.split()[:-1]]
    assert {"app", "model", "training", "static", "pyproject.toml", "constraints.txt"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(path == name or path.startswith(f"{name}/") for path in tracked), name
        reaches = False
        for rule in rules:
            pattern = rule.lstrip("!")
            if fnmatch.fnmatch(name, pattern) or name.startswith(f"{pattern}/"):
                reaches = rule.startswith("!")
        assert reaches, f"{name} is kept out by .dockerignore"


def run_health_check(command: list[str], port: int) -> int:
    words = [sys.executable, *(word.replace("7860", str(port)) for word in command[1:])]
    return subprocess.run(words, capture_output=True, timeout=PATIENCE_S, check=False).returncode


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_health_checks_use_readyz(compose: dict[str, Any], status: int | None, healthy: bool) -> None:
    import http.server
    import threading

    asked: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status or 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    checks = [
        compose["services"]["app"]["healthcheck"]["test"][1:],
        yaml.safe_load(all_of("HEALTHCHECK")[0].split("CMD ")[1]),
    ]
    assert checks[0] == checks[1]
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            if status is not None:
                assert (run_health_check(checks[0], port) == 0) is healthy
                assert asked == ["/readyz"]
        finally:
            server.shutdown()
            thread.join()
    if status is None:
        assert (run_health_check(checks[0], port) == 0) is healthy


# ---- compose


def test_default_app_uses_sqlite_in_a_volume(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert [name for name, service in services.items() if "profiles" not in service] == ["app"]
    app = services["app"]
    assert app["depends_on"] == {"postgres": {"condition": "service_healthy", "required": False}}
    assert app["volumes"] == ["studio:/data"]
    assert "studio" in compose["volumes"]
    assert environment(app)["OMNI_R1_DATABASE_URL"] is None  # only the caller's environment sets it


def test_app_is_local_and_requires_a_key(compose: dict[str, Any]) -> None:
    app = compose["services"]["app"]
    (port,) = app["ports"]
    assert port.startswith("127.0.0.1:")
    assert port.endswith(":7860")
    assert re.fullmatch(r"\$\{OMNI_R1_API_KEY:\?[^}]+\}", environment(app)["OMNI_R1_API_KEY"])
    assert "ports" not in compose["services"]["postgres"]


def test_app_health_and_stop_time_are_configured(compose: dict[str, Any]) -> None:
    app = compose["services"]["app"]
    assert "/readyz" in " ".join(app["healthcheck"]["test"])
    assert app["stop_grace_period"] == "15s"
    assert app["build"]["args"]["TORCH_INDEX"].endswith("https://download.pytorch.org/whl/cpu}")


def test_profile_adds_a_postgresql(compose: dict[str, Any]) -> None:
    app, postgres = compose["services"]["app"], compose["services"]["postgres"]
    assert postgres["profiles"] == ["postgres"]
    assert postgres["healthcheck"]["test"][1] == "pg_isready"
    given, wanted = environment(postgres), environment(app)
    assert wanted["STUDIO_POSTGRES_HOST"] in postgres["networks"]["default"]["aliases"]
    assert wanted["STUDIO_POSTGRES_USER"] == given["POSTGRES_USER"]
    assert wanted["STUDIO_POSTGRES_DATABASE"] == given["POSTGRES_DB"]
    assert wanted["PGPASSWORD"] == given["POSTGRES_PASSWORD"]
    assert "UTF8" in given["POSTGRES_INITDB_ARGS"]
    assert postgres["volumes"] == ["postgres:/var/lib/postgresql/data"]
    assert "postgres" in compose["volumes"]


def test_gpu_service_is_the_app_with_gpus(compose: dict[str, Any]) -> None:
    app, gpu = compose["services"]["app"], compose["services"]["gpu"]
    own = {"profiles", "build", "image", "environment", "deploy"}
    assert {name: value for name, value in gpu.items() if name not in own} == {
        name: value for name, value in app.items() if name not in own
    }
    assert gpu["profiles"] == ["gpu"]
    assert gpu["image"] != app["image"]  # another build of torch
    assert "/whl/cu" in gpu["build"]["args"]["TORCH_INDEX"]
    assert environment(gpu) == environment(app) | {"OMNI_R1_DEVICE": "cuda"}
    (devices,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (devices["driver"], devices["capabilities"]) == ("nvidia", ["gpu"])


def test_ray_service_is_the_app_with_ray(compose: dict[str, Any]) -> None:
    app, ray = compose["services"]["app"], compose["services"]["ray"]
    own = {"profiles", "build", "image", "environment", "shm_size"}
    assert {name: value for name, value in ray.items() if name not in own} == {
        name: value for name, value in app.items() if name not in own
    }
    assert ray["profiles"] == ["ray"]
    assert ray["image"] != app["image"]
    (usual,) = [rest.removeprefix("EXTRAS=") for rest in all_of("ARG") if rest.startswith("EXTRAS=")]
    assert set(ray["build"]["args"]["EXTRAS"].split(",")) == {"ray", *usual.split(",")}
    added = {"OMNI_R1_ENGINE", "OMNI_R1_REPLICAS", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    assert {name for name, value in environment(ray).items() if environment(app).get(name, "") != value} == added


def test_compose_passes_all_open_settings(compose: dict[str, Any]) -> None:
    given = environment(compose["services"]["app"])
    fixed = {name for env in all_of("ENV") for name in re.findall(rf"({PREFIX}\w+)=", env)}
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    assert {name for name in given if name.startswith(PREFIX)} == known - fixed
    passed_on = {name for name, value in given.items() if name.startswith(PREFIX) and value is None}
    assert known - fixed - passed_on == {f"{PREFIX}API_KEY"}  # required


# ---- the start script


class Started:
    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.error = done.returncode, done.stderr
        self.said = dict(line.split("=", 1) for line in done.stdout.splitlines())


def start(folder: Path, *, resolves: bool, **more: str) -> Started:
    """Runs the script with an `omni-r1` that prints its arguments and a `getent` that resolves all names or none."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    known = "omni-r1-postgres" if resolves else "nobody"
    scripts = {
        "omni-r1": 'echo "argv=$*"; echo "url=${OMNI_R1_DATABASE_URL:-}"',
        "getent": f'[ "$1 $2" = "hosts {known}" ]',
    }
    for name, body in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    home = folder / "data"
    home.mkdir(exist_ok=True)
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "OMNI_R1_HOME": str(home), **more}
    return Started(
        subprocess.run([str(START)], env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    )


@pytest.fixture
def given(compose: dict[str, Any]) -> dict[str, str]:
    """The environment that compose passes to the script."""
    return {
        name: value for name, value in environment(compose["services"]["app"]).items() if name.startswith("STUDIO_")
    }


def test_start_script_uses_sqlite_without_postgresql(tmp_path: Path, given: dict[str, str]) -> None:
    assert os.access(START, os.X_OK)
    alone = start(tmp_path, resolves=False, **given)
    assert (alone.code, alone.said) == (0, {"argv": "serve", "url": ""})
    by_itself = start(tmp_path, resolves=True)  # docker run, without compose
    assert (by_itself.code, by_itself.said["url"]) == (0, "")


def test_start_script_uses_postgresql_of_the_profile(tmp_path: Path, given: dict[str, str]) -> None:
    started = start(tmp_path, resolves=True, **given)
    assert (started.code, started.said) == (0, {"argv": "serve", "url": URL})
    assert Settings(database_url=URL).sqlalchemy_url == URL


def test_volume_with_postgresql_never_falls_back_to_sqlite(tmp_path: Path, given: dict[str, str]) -> None:
    start(tmp_path, resolves=True, **given)
    without = start(tmp_path, resolves=False, **given)
    assert (without.code, without.said) == (1, {})
    assert "--profile postgres" in without.error
    in_json = start(tmp_path, resolves=False, OMNI_R1_LOG_FORMAT="json", **given)
    assert "--profile postgres" in json.loads(in_json.error)["message"]
    assert start(tmp_path, resolves=True, **given).said["url"] == URL
    named = start(tmp_path, resolves=False, OMNI_R1_DATABASE_URL="postgresql://u@elsewhere/db", **given)
    assert (named.code, named.said["url"]) == (0, "postgresql://u@elsewhere/db")
