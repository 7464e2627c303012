"""A typed client for the studio's REST API.

`Client("http://127.0.0.1:7860").create_trace("How many red shapes are there?", [image_id])`

Shared by the pages, the command line and the tests. It knows HTTP and nothing about the server's internals. Results
are plain dictionaries, typed in `app.client.types`; `app.client.errors` shows the tree of exceptions.

"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote, urlsplit

import httpx

from app.client.branches import BranchCalls
from app.client.curation import CurationCalls
from app.client.errors import BadInput, MalformedAnswer, OmniError, api_error
from app.client.follow import GIVE_UP_S, follow, unreachable
from app.client.jobs import JobCalls
from app.client.runs import RunCalls
from app.client.sse import Cursor, Event
from app.client.storage import StorageCalls
from app.client.types import Budget, ImageRef, Limits, Page, Readiness, Sampling, StoredImage, Task, Trace, Verify
from app.client.types_rewards import Extensions, Reward
from app.client.why import WhyCalls
from app.contract.words import Drain, Fit, Mode

PATIENT = httpx.Timeout(None, connect=5.0)  # for calls that wait for a disk, a hub or running traces
DEFAULT_URL = "http://127.0.0.1:7860"


def default_url() -> str:
    """The command line's server: OMNI_R1_URL, else port 7860 on this machine."""
    return os.environ.get("OMNI_R1_URL", "").strip() or DEFAULT_URL


def default_key() -> str:
    """The key for that server: OMNI_R1_API_KEY, or an empty string."""
    key = os.environ.get("OMNI_R1_API_KEY", "").strip()
    return key if key.isascii() and key.isprintable() else ""  # not valid in a header


class Client(BranchCalls, WhyCalls, CurationCalls, JobCalls, RunCalls, StorageCalls):
    """A connection pool to one server, usable from many threads; close it, or use it with `with`.

    `api_key` is sent with every request (default: OMNI_R1_API_KEY). `transport` (httpx.MockTransport), `sleep` and
    `clock` are for tests.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base_url = (base_url or default_url()).rstrip("/")
        host = _host(self.base_url)
        self._sleep = sleep
        self._clock = clock
        key = default_key() if api_key is None else api_key
        self._http = httpx.Client(
            base_url=self.base_url,
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            transport=transport,
            trust_env=host not in ("127.0.0.1", "localhost", "::1"),  # no proxy for this machine
            headers={"User-Agent": "omni-r1", **({"Authorization": f"Bearer {key}"} if key else {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; later calls fail."""
        self._http.close()

    # Traces

    def create_trace(
        self,
        question: str,
        images: Sequence[str | ImageRef] = (),
        *,
        task_id: str | None = None,
        checkpoint: str | None = None,
        mode: Mode = "auto",
        sampling: Sampling | None = None,
        verify: Verify | None = None,
        partial_images: int = 0,
        background: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
        n: int = 1,
        idempotency_key: str | None = None,
    ) -> Trace:
        """Creates and starts a trace; an image is an image_id or an ImageRef. Raises BadInput, QueueFull, NotReady.

        With `n` above 1 it creates a group of samples and returns the first one; `group_id` names the group. `verify`
        draws several candidates for each image, of which a verifier chooses one.
        """
        wanted = {
            "question": question,
            "images": [{"image_id": image} if isinstance(image, str) else image for image in images],
            "mode": mode,
            "partial_images": partial_images,
            "task_id": task_id,
            "checkpoint": checkpoint,
            "sampling": sampling,
            "verify": verify,
            "background": background,
            "metadata": metadata,
            "n": n if n != 1 else None,
        }
        body = {name: value for name, value in wanted.items() if value is not None}  # others use the server's defaults
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return cast(Trace, self._json("POST", "/v1/traces", json=body, headers=headers))

    def trace(self, trace_id: str) -> Trace:
        """A trace with its steps so far. Raises NotFound."""
        return cast(Trace, self._json("GET", _path("traces", trace_id)))

    def traces(
        self,
        *,
        limit: int = 20,
        after: str | None = None,
        status: str | None = None,
        checkpoint: str | None = None,
        slice: str | None = None,
        verdict: str | None = None,
        rating: int | None = None,
        tag: str | None = None,
        parent: str | None = None,
        group: str | None = None,
        q: str | None = None,
    ) -> Page:
        """One page of traces, newest first; `after` is the last id of the previous page."""
        wanted = {
            "limit": limit,
            "after": after,
            "status": status,
            "checkpoint": checkpoint,
            "slice": slice,
            "verdict": verdict,
            "rating": rating,
            "tag": tag,
            "parent": parent,
            "group": group,
            "q": q,
        }
        params = {name: value for name, value in wanted.items() if value not in (None, "")}
        return cast(Page, self._json("GET", "/v1/traces", params=params))

    def pause(self, trace_id: str) -> Trace:
        """Pauses a trace at the end of its running step; no-op for paused and ended traces."""
        return cast(Trace, self._json("POST", _path("traces", trace_id, "pause")))

    def continue_(self, trace_id: str, mode: Mode = "step") -> Trace:
        """Runs one more step of a paused trace, or with `auto` the rest. Raises Conflict unless it is paused."""
        return cast(Trace, self._json("POST", _path("traces", trace_id, "continue"), json={"mode": mode}))

    def cancel(self, trace_id: str) -> Trace:
        """Cancels a trace; returns when the engine has stopped. No-op for ended traces."""
        return cast(Trace, self._json("POST", _path("traces", trace_id, "cancel")))

    def delete(self, trace_id: str) -> None:
        """Deletes a trace with its events and partial images; an active one is cancelled first."""
        self._request("DELETE", _path("traces", trace_id))

    def film(self, trace_id: str) -> bytes:
        """The trace as an animated GIF. Raises Conflict while it is queued or running."""
        return self._request("GET", _path("traces", trace_id, "film")).content

    def events(self, trace_id: str, after: int = 0, *, give_up_s: float = GIVE_UP_S) -> Iterator[Event]:
        """Yields the trace's events with numbers above `after`, live, each once and in order, until the terminal one.

        Reconnects after broken connections and restarts; raises ServerUnreachable after `give_up_s` seconds without
        events, and ApiError when the server rejects the request (NotFound for an unknown trace).
        """
        url = _path("traces", trace_id, "events")
        return follow(self._http, url, Cursor(after), give_up_s=give_up_s, sleep=self._sleep, clock=self._clock)

    # Images and tasks

    def upload_image(self, image: bytes | str | Path, filename: str = "picture") -> StoredImage:
        """Stores an image (PNG, JPEG, WebP, GIF, BMP, AVIF; bytes or a path). Raises BadInput, OSError for the path."""
        if not isinstance(image, bytes):
            filename = Path(image).name
            image = Path(image).read_bytes()
        safe_name = filename.encode("ascii", "replace").decode() or "picture"
        files = {"file": (safe_name, image, "application/octet-stream")}
        return cast(StoredImage, self._json("POST", "/v1/images", files=files))

    def image(self, image_id: str) -> bytes:
        """The PNG of a stored image."""
        return self._request("GET", _path("images", image_id)).content

    def model_view(self, image_id: str, *, checkpoint: str | None = None, fit: Fit = "crop") -> bytes:
        """The PNG of an image as the model sees it, at its resolution."""
        params = {"fit": fit, **({"checkpoint": checkpoint} if checkpoint else {})}
        return self._request("GET", _path("images", image_id, "model-view"), params=params).content

    def fetch(self, url: str) -> bytes:
        """The content of a `url` of this server (a path that begins with `/`)."""
        if not url.startswith("/") or url.startswith("//"):
            raise MalformedAnswer(f"not a path on this server: {url!r}")
        return self._request("GET", url).content

    def task(
        self,
        *,
        slice: str | None = None,
        seed: int | None = None,
        level: str | int | None = None,
        reveal: bool = False,
    ) -> Task:
        """A task of the procedural world; random and held out without a seed. Levels: normal, hard, 1 … 8."""
        wanted = {"slice": slice, "seed": seed, "level": level, "reveal": "true" if reveal else None}
        params = {name: value for name, value in wanted.items() if value is not None}
        return cast(Task, self._json("GET", "/v1/tasks", params=params))

    # System

    def limits(self) -> Limits:
        """The limits of requests to the active checkpoint."""
        return cast(Limits, self._json("GET", "/v1/limits"))

    def count(self, question: str, images: int = 0) -> Budget:
        """The tokens of a question with that many images, and the remaining context."""
        return cast(Budget, self._json("POST", "/v1/limits", json={"question": question, "images": images}))

    def reward(
        self,
        answer: str | None,
        reference: str,
        choices: Sequence[str] | Mapping[str, str] = (),
        *,
        similarity: bool = False,
        reward: Mapping[str, Any] | None = None,
    ) -> Reward:
        """Grades an answer as training and benchmarks do; `choices` in order, or by label.

        `reward` has weights (`alpha`, `beta`, `gamma`, `functional`) and `custom` rewards of your own, as in a job.
        """
        given = dict(choices) if isinstance(choices, Mapping) else list(choices)
        body: dict[str, Any] = {"answer": answer, "reference": reference, "choices": given, "similarity": similarity}
        if reward is not None:
            body["reward"] = dict(reward)
        return cast(Reward, self._json("POST", "/v1/rewards", json=body))

    def trace_reward(
        self, trace_id: str, reference: str | None = None, *, reward: Mapping[str, Any] | None = None
    ) -> Reward:
        """Scores a completed trace: answer, format, drawings, total. A task's trace needs no `reference`.

        `reward` as for :meth:`reward`.
        """
        given = {"trace_id": trace_id, "reference": reference, "reward": reward}
        body = {name: value for name, value in given.items() if value is not None}
        return cast(Reward, self._json("POST", "/v1/rewards", json=body))

    def extensions(self) -> Extensions:
        """The rewards and task families of your own that the server knows."""
        return cast(Extensions, self._json("GET", "/v1/extensions"))

    def checkpoints(self) -> list[dict[str, Any]]:
        """All checkpoints that the server knows, unusable ones with their problem."""
        return cast(list[dict[str, Any]], self._json("GET", "/v1/checkpoints")["data"])

    def checkpoint(self, checkpoint_id: str) -> dict[str, Any]:
        """One checkpoint by its name or hub id. Raises NotFound."""
        return self._json("GET", _path("checkpoints", checkpoint_id))

    def register_checkpoint(
        self, source: str, *, name: str | None = None, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Registers a folder on the server's machine, or a hub id; waits until it is fetched and validated."""
        body = {"source": source} | ({"name": name} if name else {})
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._json("POST", "/v1/checkpoints", json=body, headers=headers, timeout=PATIENT)

    def activate(self, checkpoint_id: str, *, drain: Drain | None = None) -> dict[str, Any]:
        """Activates a checkpoint for new traces; returns when it is active.

        If memory cannot hold both, `drain` waits for running traces or cancels them. Raises Conflict, BadInput,
        ServerFailed (507: memory) without changes.
        """
        body = {"drain": drain} if drain else {}
        return self._json("POST", _path("checkpoints", checkpoint_id, "activate"), json=body, timeout=PATIENT)

    def delete_checkpoint(self, checkpoint_id: str, *, unload: bool = False) -> None:
        """Deletes an unused checkpoint; `unload` unloads it first. Raises Conflict while it is in use."""
        params = {"unload": "true"} if unload else {}
        self._request("DELETE", _path("checkpoints", checkpoint_id), params=params)

    def models(self) -> list[dict[str, Any]]:
        """The usable checkpoints in the form of an OpenAI model list."""
        return cast(list[dict[str, Any]], self._json("GET", "/v1/models")["data"])

    def readiness(self) -> Readiness:
        """The content of `/readyz`, ready or not. Raises ServerUnreachable without a response."""
        response = self._send("GET", "/readyz")
        if response.status_code not in (200, 503):
            raise api_error(response)
        return cast(Readiness, _object(response))

    def alive(self) -> bool:
        """Whether the process answers, ready or not."""
        try:
            return self._send("GET", "/livez").status_code == 200
        except OmniError:
            return False

    # Internals

    def _json(self, method: str, url: str, **options: Any) -> dict[str, Any]:
        return _object(self._request(method, url, **options))

    def _request(self, method: str, url: str, **options: Any) -> httpx.Response:
        response = self._send(method, url, **options)
        if response.is_error:
            raise api_error(response)
        return response

    def _send(self, method: str, url: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, url, **options)
        except httpx.TransportError as error:
            raise unreachable(self._http, error) from error
        except ValueError as error:  # NaN, lone surrogates
            raise BadInput(422, {"code": "not_json", "detail": f"cannot be sent as JSON: {error}"}) from error


def _host(url: str) -> str:
    """The host of a server's address: a scheme, a host, perhaps a port and a path. Raises BadInput for another one."""
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.port != 0 else None
    except ValueError:  # such as half an IPv6 address
        host = None
    if not host or parts.scheme not in ("http", "https") or "?" in url or "#" in url:
        raise BadInput(422, {"code": "bad_url", "detail": f"not a server address: {url!r}"})
    return host


def _path(collection: str, *parts: str) -> str:
    return "/v1/" + "/".join([collection, *(quote(part, safe="") for part in parts)])


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError as error:
        raise MalformedAnswer(f"{response.request.url} answered {response.status_code} without JSON") from error
    if not isinstance(answer, dict):
        raise MalformedAnswer(f"{response.request.url} answered JSON that is not an object")
    return answer
