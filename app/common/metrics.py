"""Prometheus metrics of one server, in its own registry, so that tests can build many."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """All metrics of the server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "omni_r1_http_requests", "Answered requests.", ["method", "route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "omni_r1_http_request_seconds", "Time to the first byte.", ["route"], buckets=_FAST, registry=self.registry
        )
        self.traces_created = Counter("omni_r1_traces_created", "Accepted traces.", registry=self.registry)
        self.traces_ended = Counter("omni_r1_traces_ended", "Ended traces.", ["status"], registry=self.registry)
        self.tokens = Counter(
            "omni_r1_tokens", "Generated tokens of complete steps and of answers.", registry=self.registry
        )
        self.jobs_ended = Counter(
            "omni_r1_jobs_ended", "Jobs that started and ended.", ["status"], registry=self.registry
        )
        self.queued_seconds = Histogram(
            "omni_r1_trace_queued_seconds", "Wait for a slot.", buckets=_FAST, registry=self.registry
        )
        self.first_text_seconds = Histogram(
            "omni_r1_trace_first_text_seconds", "POST to the first text.", buckets=_FAST, registry=self.registry
        )

    def job_ended(self, status: str) -> None:
        """Count the end of a job. From any thread."""
        self.jobs_ended.labels(status).inc()

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Register a gauge that is read on every scrape."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def count(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Register a counter that is read on every scrape; exposed as `name` with `_total`."""
        self.registry.register(_Count(name, text, read))

    def watch_each(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Register a gauge with a value per `label`, read on every scrape."""
        self.registry.register(_Each(name, text, label, read))

    def render(self) -> bytes:
        """The metrics in Prometheus text format."""
        return generate_latest(self.registry)


class _Count(Collector):
    """Exposes an externally maintained count as a counter."""

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self._name, self._text, self._read = name, text, read

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._text, value=self._read())


class _Each(Collector):
    """Exposes a mapping as a gauge with one label."""

    def __init__(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        self._name, self._text, self._label, self._read = name, text, label, read

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        for value, number in self._read().items():
            family.add_metric([value], number)
        yield family


class MetricsMiddleware:
    """Counts requests by route template, not by path: ids would create unbounded series."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count a request when its response starts, with the seconds until then."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", None) or "other"
                self._metrics.request_seconds.labels(route).observe(time.perf_counter() - start)
                self._metrics.requests.labels(scope["method"], route, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counting_send)
