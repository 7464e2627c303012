"""The step loop over all loaded models: requests in, outputs out.

One thread owns the engines: it drains the inbox, steps every engine that has work, and sends the outputs, so an abort
takes effect within one token (plus a few images when they pile up). One more thread decodes images (`drawings.py`), one
loads weights (`models.py`). A step that raises only fails the requests of its engine.

Knows no transport: `child.py` runs it in a process of its own, `inprocess.py` in a thread.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from typing import Any, Literal

from model.engine.drawings import Drawings
from model.engine.engine import SequenceOutput
from model.engine.messages import (
    Cancelled,
    Emitted,
    EngineStatus,
    Failed,
    Finished,
    GenerationRequest,
    Output,
    Paused,
    QueuePosition,
    Started,
)
from model.engine.models import Model, Models
from model.engine.narrator import ImageResult, Narrator, ReadyEvent
from model.engine.requests import KVStash, Live, ResumeError, ResumeState, sampling_params
from model.engine.sequence import Status

log = logging.getLogger("omni_r1.engine")

STASH_BYTES = 64 << 20
Send = Callable[[tuple[Any, ...]], None]


class Worker:
    """The step loop. `post` is thread-safe; everything else runs in the thread of `run`."""

    def __init__(
        self, send: Send, *, device: str = "auto", num_slots: int = 16, num_threads: int | None = None
    ) -> None:
        self._send = send
        self._inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._drawings = Drawings(self.post)
        self.models = Models(
            self.post,
            device=device,
            num_slots=num_slots,
            num_threads=num_threads,
            wait_for_images=self._drawings.wait_for_images,
        )
        self._live: dict[str, Live] = {}
        self._outbox: list[tuple[str, Output]] = []
        self._stash = KVStash(STASH_BYTES)
        self._reported: EngineStatus | None = None

    def post(self, message: tuple[Any, ...]) -> None:
        """Put a message into the inbox."""
        self._inbox.put(message)

    def run(self) -> None:
        """Work until ("close",) arrives."""
        try:
            while self._drain():
                if self._outbox:
                    self._flush()  # send decoded images before the step
                for model in self.models:
                    self._step(model)
                self._tell_positions()
                self._flush()
                self._drawings.help_out()
        finally:
            self._drawings.close()
            self.models.close()

    @property
    def _has_work(self) -> bool:
        return any(not model.engine.scheduler.is_idle for model in self.models)

    def _drain(self) -> bool:
        """Handle all messages; wait for one when idle. Returns False on close."""
        wait = not self._has_work
        while True:
            try:
                message = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            if message[0] == "close":
                return False
            self._handle(message)
            wait = False

    def _handle(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("generate", request):
                self._guarded(request.request_id, self._arrive, request)
            case ("abort", request_id, ticket):
                self._abort(request_id)
                self._reply(ticket)
            case ("mode", request_id, mode):
                self._set_mode(request_id, mode == "step")
            case ("encoded", live, codes, error):
                self._encoded(live, codes, error)
            case ("image", live, ticket, result, error):
                self._image_done(live, ticket, result, error)
            case ("settings", settings):
                self.models.configure(**settings)
            case ("load", name, folder, version, ticket):
                self.models.load(name, folder, version, ticket)
            case ("model", name, model, error, ticket):
                self._end_load(name, model, error, ticket)
            case ("loaded_all",):
                self.models.all_named = True
            case ("unload", name, ticket):
                self.models.retire(name)
                self._sweep()
                self._reply(ticket)
            case ("check", folder, ticket):
                self.models.check(folder, ticket)
            case ("checked", footprint, error, ticket):
                self._reply(ticket, error=_error_pair(error, "check_failed"), value=footprint)
            case ("memory", ticket):
                self._reply(ticket, value=self.models.memory() | {"stash": self._stash.num_bytes})

    def _end_load(self, name: str, model: Model | None, error: Exception | None, ticket: int | None) -> None:
        self.models.take(name, model)
        self._sweep()
        if model is None and ticket is None:
            self.models.problem = f"{name}: {error}"
        self._reply(ticket, error=_error_pair(error, "load_failed"))
        for live in [live for live in self._live.values() if live.model is None]:
            self._guarded(live.request.request_id, self._find_model, live)

    def _sweep(self) -> None:
        """Free retired models without requests."""
        if self.models.num_retired:
            for model in self.models.sweep([live.model for live in self._live.values()]):
                self._stash.forget(model)

    def _arrive(self, request: GenerationRequest) -> None:
        live = self._live[request.request_id] = Live(request, step_mode=request.mode == "step")
        self._find_model(live)

    def _find_model(self, live: Live) -> None:
        request, name = live.request, live.request.checkpoint
        state = None if request.resume is None else ResumeState.from_bytes(request.resume)
        model = self.models.find(name, None if state is None else state.version)
        if model is None:
            if not self.models.settled:
                return  # retried when a load has ended
            if state is None or self.models.find(name) is None:
                self._end(live, Failed("unknown_checkpoint", f"checkpoint {name} is not loaded"))
            else:
                detail = f"version {state.version} of {name}, with which the trace started, is not loaded any more"
                self._end(live, Failed("weights_gone", detail))
            return
        live.model = model
        if state is not None:
            live.previous = None if state.previous is None else tuple(state.previous)
            self._begin(live, state.prompt, state)
        elif not request.images:
            self._begin(live, model.loaded.template.prompt_ids(request.question, []), None)
        elif not model.loaded.can_see:
            self._end(live, Failed("bad_image", f"checkpoint {model.name} has no image encoder"))
        else:
            self._drawings.see(live)

    def _encoded(self, live: Live, codes: list[tuple[int, ...]], error: BaseException | None) -> None:
        if not self._is_live(live):
            return
        if error is not None:
            self._end(live, Failed("bad_image", f"an image of the question cannot be read: {error}"))
            return
        live.previous = codes[-1]
        if live.request.show_seen:
            self._drawings.show_seen(live, self._is_live)
        prompt = live.model.loaded.template.prompt_ids(live.request.question, codes)
        self._guarded(live.request.request_id, self._begin, live, prompt, None)

    def _begin(self, live: Live, prompt: list[int], state: ResumeState | None) -> None:
        """Queue the request at its engine."""
        request, engine, loaded = live.request, live.model.engine, live.model.loaded
        if len(prompt) >= engine.context_len:
            detail = f"the prompt has {len(prompt)} tokens, {engine.context_len - 1} fit"
            self._end(live, Failed("prompt_too_long", detail))
            return
        defaults = loaded.generation
        params = (
            state.sampling()
            if state
            else sampling_params(
                request.sampling, temperature=defaults.temperature, top_p=defaults.top_p, can_draw=loaded.can_draw
            )
        )
        live.prompt = prompt
        live.narrator = Narrator(
            loaded.template.parser(),
            partial_images=request.partial_images,
            previous=live.previous,
            skip=state.num_parsed if state else 0,
            step_mode=live.step_mode,
        )
        tokens = state.tokens if state else []
        (live.sequence,) = engine.add_request(
            prompt,
            params,
            request_id=request.request_id,
            resumed=tokens,
            num_draws=state.num_draws if state else 0,
            kv=self._stash.take(live.model, state.key) if state else None,
        )
        for token in tokens:
            self._drawings.draw(live, live.narrator.feed(token))
        if live.narrator.paused_after is not None:
            self._start(live)
            self._pause(live)

    def _guarded(self, request_id: str, work: Callable[..., None], *arguments: Any) -> None:
        """Run the start of a request; an error fails only that request."""
        try:
            work(*arguments)
        except Exception as error:
            code = "bad_resume" if isinstance(error, ResumeError) else "engine_error"
            if not isinstance(error, ValueError):
                log.exception("request %s could not start", request_id)
            self._end(self._live[request_id], Failed(code, str(error)))

    def _is_live(self, live: Live) -> bool:
        return self._live.get(live.request.request_id) is live

    def _abort(self, request_id: str) -> None:
        live = self._live.get(request_id)
        if live is not None:
            self._end(live, Cancelled())
        self._flush()

    def _set_mode(self, request_id: str, step_mode: bool) -> None:
        live = self._live.get(request_id)
        if live is not None:
            live.step_mode = step_mode
            if live.narrator is not None:
                live.narrator.step_mode = step_mode

    def _end(self, live: Live, output: Output) -> None:
        """Send the request's last output immediately."""
        request_id = live.request.request_id
        self._live.pop(request_id, None)
        if live.model is not None:
            live.model.engine.abort(request_id)
        self._outbox.append((request_id, output))
        self._sweep()

    def _step(self, model: Model) -> None:
        if model.engine.scheduler.is_idle:
            return
        try:
            outputs = model.engine.step()
            for output in outputs:
                self._take(self._live[output.request_id], output)
        except Exception as error:
            log.exception("a step of %s failed", model.name)
            running = {sequence.request_id for sequence in model.engine.scheduler.running}
            model.engine.reset()
            for live in [live for name, live in self._live.items() if live.model is model and name in running]:
                self._end(live, Failed("engine_error", f"a step failed: {type(error).__name__}: {error}"))

    def _take(self, live: Live, output: SequenceOutput) -> None:
        narrator, sequence, request = live.narrator, live.sequence, live.request
        assert narrator is not None
        assert sequence is not None
        self._start(live)
        if output.finished_by == "error":
            self._end(live, Failed("engine_error", "the weights give NaN for this question"))
            return
        self._drawings.draw(live, narrator.feed(output.token))
        if output.finished_by is not None:
            self._drawings.draw(live, narrator.finish())
            usage = {
                "prompt_tokens": len(sequence.prompt),
                "completion_tokens": len(sequence.response),
                "images": narrator.num_images,
            }
            reason = sequence.state.finish_reason or "length"
            narrator.end(Finished(reason, narrator.parser.answer or None, usage, narrator.parser.unmarked))
        elif narrator.paused_after is not None:
            self._pause(live)
        self._send_events(live)
        log.debug("request %s: %d tokens", request.request_id, len(sequence.response))

    def _start(self, live: Live) -> None:
        if live.started or live.sequence is None:
            return
        live.started = True
        sequence, model = live.sequence, live.model
        state, params = sequence.state, sequence.params
        self._outbox.append(
            (
                live.request.request_id,
                Started(
                    prompt_tokens=len(sequence.prompt),
                    context_len=model.engine.context_len,
                    max_new_tokens=state.max_tokens,
                    room_images=max(0, state.max_images - state.images_done),
                    temperature=params.temperature,
                    top_p=params.top_p,
                    weight_version=model.version,
                ),
            )
        )

    def _pause(self, live: Live) -> None:
        """Free the slot; the request ends with Paused after its pending events."""
        narrator, sequence, engine = live.narrator, live.sequence, live.model.engine
        assert narrator is not None
        assert sequence is not None
        key = ""
        if sequence.status is Status.RUNNING:
            key = self._stash.put(live.model, engine.export_kv(sequence))
        state = ResumeState.of(live, sequence, narrator, key)
        engine.abort(live.request.request_id)
        narrator.end(Paused(narrator.paused_after or 0, state.to_bytes()))
        self._send_events(live)

    def _image_done(self, live: Live, ticket: int, result: ImageResult | None, error: BaseException | None) -> None:
        if not self._is_live(live) or live.narrator is None:
            return
        if result is None:
            log.error("an image of request %s could not be decoded", live.request.request_id, exc_info=error)
            self._end(live, Failed("engine_error", f"an image could not be decoded: {error}"))
            return
        live.narrator.image_done(ticket, result)
        self._send_events(live)

    def _send_events(self, live: Live) -> None:
        if not live.started or live.narrator is None or not self._is_live(live):
            return
        request_id = live.request.request_id
        for item in live.narrator.take():
            if isinstance(item, ReadyEvent):
                self._outbox.append((request_id, Emitted(item.event, item.png, item.codes, item.seen)))
            elif isinstance(item, Finished | Paused):
                self._end(live, item)

    def _tell_positions(self) -> None:
        for model in self.models:
            scheduler = model.engine.scheduler
            if not scheduler.waiting or len(scheduler.running) < scheduler.num_slots:
                continue
            for position, sequence in enumerate(scheduler.waiting):
                live = self._live[sequence.request_id]
                if live.position != position:
                    live.position = position
                    self._outbox.append((sequence.request_id, QueuePosition(position)))

    def _flush(self) -> None:
        if self._outbox:
            outputs, self._outbox = self._outbox, []
            self._send(("outputs", outputs))
        status = EngineStatus(
            self._phase(),
            self.models.problem,
            self.models.versions,
            sum(model.engine.num_running for model in self.models),
            sum(model.engine.num_waiting for model in self.models),
        )
        if status != self._reported:
            self._reported = status
            self._send(("status", status))

    def _phase(self) -> Literal["starting", "ready", "failed"]:
        """Ready for good once all initial checkpoints have been tried and one was loaded."""
        if self._reported is not None and self._reported.phase == "ready":
            return "ready"
        if not self.models.settled:
            return "starting"
        return (
            "ready" if self.models.versions or not self.models.problem else "failed"
        )  # nothing requested, nothing failed

    def _reply(self, ticket: int | None, *, error: tuple[str, str] | None = None, value: Any = None) -> None:
        if ticket is not None:
            self._send(("reply", ticket, error, value))


def _error_pair(error: Exception | None, fallback: str) -> tuple[str, str] | None:
    """Code and message of an error for a reply."""
    return None if error is None else (str(getattr(error, "code", fallback)), str(error))
