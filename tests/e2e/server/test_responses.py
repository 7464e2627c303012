"""Responses survive `kill -9` of the server: what was streamed is repeated byte for byte, and the end is reported."""

from __future__ import annotations

from pathlib import Path

import httpx
from openai import OpenAI

from tests.e2e.real_server import new_server
from tests.patience import PATIENCE_S


def test_killed_server_repeats_every_response(tmp_path: Path) -> None:
    server = new_server(tmp_path)
    server.environment["OMNI_R1_PAGES"] = "0"
    server.start()
    try:
        with server.client() as client:
            task = client.task(slice="operational", seed=1_000_000_000)
        parts = [
            {"type": "input_text", "text": task["question"]},
            {"type": "input_image", "file_id": task["image_id"]},
        ]
        body = {"input": [{"role": "user", "content": parts}], "stream": True, "background": True}
        ended = httpx.post(f"{server.url}/v1/responses", json=body, timeout=PATIENCE_S).content
        cut = b""
        with httpx.stream("POST", f"{server.url}/v1/responses", json=body, timeout=PATIENCE_S) as stream:
            for chunk in stream.iter_raw():
                cut += chunk
                if b"response.image_generation_call.generating" in cut:
                    break
            server.kill()
        cut = cut[: cut.rindex(b"\n\n") + 2]
        server.start()
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=PATIENCE_S) as openai:
            ids = [_response_id(ended), _response_id(cut)]
            replayed = [
                httpx.get(f"{server.url}/v1/responses/{id_}", params={"stream": True}, timeout=PATIENCE_S).content
                for id_ in ids
            ]
            assert replayed[0] == ended
            assert replayed[1].startswith(cut)
            last = cut.count(b"\n\n") - 1
            rest = list(openai.responses.retrieve(ids[1], stream=True, starting_after=last))
            assert [event.sequence_number for event in rest] == list(range(last + 1, last + 1 + len(rest)))
            assert rest[-1].type == "response.failed"
            failed = openai.responses.retrieve(ids[1])
            assert failed.error is not None
            assert (failed.status, failed.error.type) == ("failed", "interrupted")
            assert openai.responses.retrieve(ids[0]).status == "completed"
    finally:
        server.kill()


def _response_id(stream: bytes) -> str:
    return stream.partition(b'"id":"')[2].partition(b'"')[0].decode()
