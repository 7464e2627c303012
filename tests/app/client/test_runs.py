"""The calls over many jobs through the client: what it sends."""

from __future__ import annotations

import json

import httpx

from tests.app.client.test_client import client_for


def test_labels_and_series_send_only_given_values() -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        seen.append((request.method, request.url.raw_path.decode(), body))
        return httpx.Response(200, json={"id": "j", "data": [], "keys": [], "points": 5, "missing": []})

    with client_for(handler) as client:
        client.update_job("a/b", name=None, tags=["x"])
        client.update_job("j", note="n")
        client.job_series(["a", "b"])
        client.job_series(["a"], ["loss/ce", "kl"], points=9, first=0, last=7)
        client.jobs(name="x", tag="y")
        client.continue_job("a/b", 7, output_name="o")
    assert seen == [
        ("PATCH", "/v1/jobs/a%2Fb", {"name": None, "tags": ["x"]}),
        ("PATCH", "/v1/jobs/j", {"note": "n"}),
        ("GET", "/v1/jobs/metrics?ids=a%2Cb&keys=&points=500", None),
        ("GET", "/v1/jobs/metrics?ids=a&keys=loss%2Fce%2Ckl&points=9&from=0&to=7", None),
        ("GET", "/v1/jobs?limit=20&name=x&tag=y", None),
        ("POST", "/v1/jobs/a%2Fb/continue", {"steps": 7, "output_name": "o"}),
    ]
