"""containers/kubernetes.yml: what the server, its image and Kubernetes expect of each other."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from app.common.settings import PREFIX, Settings, is_loopback
from app.http.auth import LOOPBACK, OPEN
from app.http.routes import system
from app.server import DRAIN_S, GRACEFUL_S
from tests.test_containers import ROOT, all_of

MIB = {"Mi": 1, "Gi": 1024}
Entry = dict[str, Any]


@pytest.fixture(scope="module")
def kinds() -> dict[str, Entry]:
    """The manifest's objects by kind."""
    found = list(yaml.safe_load_all((ROOT / "containers" / "kubernetes.yml").read_text("utf-8")))
    by_kind = {one["kind"]: one for one in found}
    assert len(by_kind) == len(found)
    return by_kind


@pytest.fixture(scope="module")
def pod(kinds: dict[str, Entry]) -> Entry:
    found: Entry = kinds["Deployment"]["spec"]["template"]["spec"]
    return found


@pytest.fixture(scope="module")
def container(pod: Entry) -> Entry:
    (found,) = pod["containers"]
    return dict(found)


def environment(container: Entry) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def mib(quantity: str) -> int:
    found = re.fullmatch(r"(\d+)(Mi|Gi)", quantity)
    assert found, quantity
    return int(found[1]) * MIB[found[2]]


def test_variables_are_valid_settings(container: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    given = environment(container)
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    assert set(given) <= known
    assert all(isinstance(value, str) for name, value in given.items() if name != "OMNI_R1_API_KEY")
    in_image = dict(pair.split("=", 1) for pair in re.findall(r"OMNI_R1_\w+=\S+", " ".join(all_of("ENV"))))
    for name, value in {**in_image, **given, "OMNI_R1_API_KEY": "of-the-secret"}.items():
        monkeypatch.setenv(name, value)
    read = Settings()
    assert not is_loopback(read.host)
    assert read.log_format == "json"


def test_key_comes_from_a_secret(kinds: dict[str, Entry], container: Entry) -> None:
    asked = environment(container)["OMNI_R1_API_KEY"]["secretKeyRef"]
    assert "Secret" not in kinds, "a key in the manifest would be everyone's"
    text = (ROOT / "containers" / "kubernetes.yml").read_text("utf-8")
    assert f"create secret generic {asked['name']} --from-literal={asked['key']}=" in text


def test_no_service_makes_variables_that_look_like_settings(kinds: dict[str, Entry], pod: Entry) -> None:
    """Kubernetes gives the pods of a namespace `NAME_PORT` and the like for each Service."""
    assert pod["enableServiceLinks"] is False
    prefix = kinds["Service"]["metadata"]["name"].upper().replace("-", "_")
    assert not prefix.startswith(PREFIX.rstrip("_"))


def test_probes_ask_open_routes_by_a_known_host(container: Entry) -> None:
    routes = {route.path for route in system.router.routes}  # type: ignore[attr-defined]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    for asked in probes.values():
        assert asked["path"] in routes & OPEN
        assert asked["httpHeaders"][0]["name"] == "Host"
        assert asked["httpHeaders"][0]["value"] in LOOPBACK
        assert asked["port"] == "http"
    assert {name: asked["path"] for name, asked in probes.items()} == {
        "startup": "/livez",
        "liveness": "/livez",  # an engine that loads, or a database that is away, is no reason to restart
        "readiness": "/readyz",
    }


def test_ports_lead_from_the_service_to_the_image(kinds: dict[str, Entry], container: Entry) -> None:
    (port,) = container["ports"]
    assert [str(port["containerPort"])] == all_of("EXPOSE")
    (exposed,) = kinds["Service"]["spec"]["ports"]
    assert exposed["targetPort"] == port["name"]
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (kinds["Service"]["spec"]["selector"], kinds["Deployment"]["spec"]["selector"]["matchLabels"]):
        assert selector.items() <= labels.items()


def test_home_is_a_volume_of_one_server(kinds: dict[str, Entry], pod: Entry, container: Entry) -> None:
    deployment = kinds["Deployment"]["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}  # a home has one owner
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert set(mounts.values()) == set(volumes)
    assert (
        volumes[mounts[all_of("VOLUME")[0]]]["persistentVolumeClaim"]["claimName"]
        == (kinds["PersistentVolumeClaim"]["metadata"]["name"])
    )
    assert "emptyDir" in volumes[mounts["/tmp"]]
    held = mib(kinds["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"]) * 2**20
    assert float(environment(container)["OMNI_R1_HOME_MAX_GB"]) * 10**9 < held


def test_server_runs_as_the_image_s_user_without_rights(pod: Entry, container: Entry) -> None:
    user, group = (int(number) for number in all_of("USER")[0].split(":"))
    given = pod["securityContext"]
    assert given["runAsNonRoot"] is True
    assert (given["runAsUser"], given["runAsGroup"], given["fsGroup"]) == (user, group, group)
    assert given["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_server_has_time_to_end_its_traces(pod: Entry, container: Entry) -> None:
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + DRAIN_S + GRACEFUL_S
