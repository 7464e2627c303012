"""The dashboard and the alerts ask only for what `/metrics` has, and Prometheus can parse what they ask."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from model.engine.messages import Emitted, Finished, Tokens, TraceEvent
from tests.app.conftest import Server
from tests.e2e.real_server import ROOT
from tests.fakes import FakeGeneration, emitted
from tests.patience import PATIENCE_S

CONTAINERS = ROOT / "containers"
ADDED = {"job", "instance"}  # labels that Prometheus adds to every sample
OWN = {"up": ADDED}  # what Prometheus itself records


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONTAINERS / "grafana.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((CONTAINERS / "alerts.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def asked_by(dashboard: dict[str, Any]) -> list[str]:
    """The queries of all panels, with Grafana's variables replaced as Grafana does."""
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    known = {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*"}
    return [re.sub(r"\$\w+", lambda name: known[name[0]], expr) for expr in found]


def selectors(query: str) -> Iterator[promql_parser.VectorSelector]:
    """The metrics that a query reads. Raises ValueError if Prometheus could not parse or type it."""
    found: list[promql_parser.Expr] = []
    promql_parser.walk(promql_parser.parse(query), found.append)
    return (node for node in found if isinstance(node, promql_parser.VectorSelector))


def grouped_by(query: str) -> set[str]:
    """Labels by which its results are summed, joined or named."""
    return {
        label
        for words in re.findall(r"\b(?:by|ignoring|on|without) ?\(([^)]*)\)", query)
        for label in re.split(r",\s*", words)
        if label
    }


async def samples(server: Server) -> dict[str, dict[str, set[str]]]:
    """Every sample of `/metrics`: its labels, and the values of each."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families((await server.client.get("/metrics")).text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


async def test_every_query_reads_what_the_server_has(
    server: Server, dashboard: dict[str, Any], alerts: list[dict[str, Any]]
) -> None:
    await server.finished((await server.create())["id"])
    await server.client.get("/v1/storage")  # as the hourly sweep measures
    async with asyncio.timeout(PATIENCE_S):
        while not (known := await samples(server)).get("omni_r1_disk_bytes"):  # measured in a thread after the start
            await asyncio.sleep(0.01)
    queries = [*asked_by(dashboard), *(rule["expr"] for rule in alerts)]
    assert len(queries) > 30
    for query in queries:
        read = list(selectors(query))
        assert read, query
        labels: set[str] = set(ADDED)
        for selector in read:
            has = OWN.get(selector.name, known.get(selector.name))
            assert has is not None, f"/metrics has no {selector.name}: {query}"
            labels |= set(has)
            for matcher in selector.matchers.matchers:
                assert matcher.name in ADDED | set(has), f"{selector.name} has no label {matcher.name}: {query}"
                if matcher.op == promql_parser.MatchOp.Equal and matcher.name not in ADDED:
                    assert matcher.value in has[matcher.name], f"{matcher} never occurs: {query}"  # type: ignore[index]
        assert grouped_by(query) <= labels, query


def test_unparsable_queries_are_noticed() -> None:
    for wrong in ("sum(rate(x[5m])", "rate(x)", "sum by status (x)", "x{status=failed}"):
        with pytest.raises(ValueError, match=r"\w"):
            list(selectors(wrong))


def test_all_own_metrics_are_on_the_dashboard_or_in_an_alert(
    dashboard: dict[str, Any], alerts: list[dict[str, Any]]
) -> None:
    queries = " ".join([*asked_by(dashboard), *(rule["expr"] for rule in alerts)])
    source = "".join((ROOT / "app" / name).read_text("utf-8") for name in ("common/metrics.py", "runtime.py"))
    own = set(re.findall(r'"(omni_r1_\w+)"', source))
    assert len(own) > 15
    assert {name for name in own if name not in queries} == {"omni_r1_traces_created"}  # ended ones are shown


def test_dashboard_is_what_grafana_reads(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {one["name"] for one in dashboard["templating"]["list"]}
    assert {name for name in re.findall(r"\$\{?(\w+)", json.dumps(dashboard)) if name[:2] != "__"} <= variables
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken, f"{panel['title']} covers another panel"
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_alerts_say_what_and_what_to_do(alerts: list[dict[str, Any]]) -> None:
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    operating = (ROOT / "docs" / "operating.md").read_text("utf-8")
    for rule in alerts:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        assert f"`{rule['alert']}`" in operating


async def test_generated_tokens_count_and_given_ones_do_not(server: Server, engine: FakeGeneration) -> None:
    step = Emitted(TraceEvent("step.completed", {"step": 1}), tokens=Tokens((1, 2, 3), (math.nan, -0.5, -0.25)))
    last = Finished(
        "stop", "red", {"prompt_tokens": 9, "completion_tokens": 4, "images": 0}, tokens=Tokens((4, 5), (-1.0, -2.0))
    )
    engine.script = lambda _request: [emitted("step.started", step=1), step, last]
    for total in (4.0, 8.0):
        await server.finished((await server.create())["id"])
        assert f"omni_r1_tokens_total {total}\n" in (await server.client.get("/metrics")).text
