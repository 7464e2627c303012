"""The step loop over all loaded models: requests in, outputs out.

One thread owns the engines: it drains the inbox, steps every engine that has work, and sends the outputs, so an abort
takes effect within one token (plus a few images when they pile up). One more thread decodes images (`drawings.py`), one
loads weights (`models.py`). A step that raises only fails requests of its engine (`shortage.py`).

Knows no transport: `child.py` runs it in a process of its own, `inprocess.py` in a thread.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from model.engine import commands
from model.engine.commands import Reply, Report
from model.engine.device import total_bytes
from model.engine.messages import Cancelled, Emitted, Failed, Finished, GenerationRequest, Output, Paused, Started
from model.engine.sequence import SequenceOutput, Status
from model.worker.drawings import Decoded, Drawings, Encoded, images_to_encode, is_to_encode, kept_steps
from model.worker.judging import candidate_images, verifier_of
from model.worker.models import LoadEnded, Model, Models, error_pair
from model.worker.narrator import Narrator
from model.worker.outbox import Outbox
from model.worker.prompts import Prompts
from model.worker.reading import ReadingMoved
from model.worker.requests import KVStash, Live, Prompt, ResumeError, ResumeState
from model.worker.scoring import scored
from model.worker.shortage import progress, settle

log = logging.getLogger("omni_r1.engine")

LEAST_STASH, STASH_SHARE = 64 << 20, 64  # bytes for the KV rows of paused traces; that share of the memory
Send = Callable[[Report], None]


class Worker:
    """The step loop. `post` is thread-safe; everything else runs in the thread of `run`."""

    def __init__(self, send: Send, settings: commands.Configure | None = None) -> None:
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._drawings = Drawings(self.post)
        self.models = Models(
            self.post, settings or commands.Configure("auto", 16, None), wait_for_images=self._drawings.wait_for_images
        )
        self._live: dict[str, Live] = {}
        self._outbox = Outbox(send, self.models, self._live)
        self._send = send
        self._prompts = Prompts()
        self._stash = KVStash(max(LEAST_STASH, total_bytes(None) // STASH_SHARE))

    def post(self, message: object) -> None:
        """Put a message into the inbox."""
        self._inbox.put(message)

    def run(self) -> None:
        """Work until `Close` arrives."""
        try:
            while self._drain():
                if self._outbox:
                    self._outbox.flush()  # send decoded images before the step
                for model in self.models:
                    self._step(model)
                self._outbox.put_positions()
                self._outbox.flush()
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
            if isinstance(message, commands.Close):
                return False
            self._handle(message)
            wait = False

    def _handle(self, message: object) -> None:
        match message:
            case commands.Generate(request):
                self._guarded(request.request_id, self._arrive, request)
            case commands.Call(ticket, command):
                self._answer(ticket, command)
            case commands.Abort(request_id):
                self._abort(request_id)
            case commands.SetMode(request_id, step_mode):
                self._set_mode(request_id, step_mode)
            case Encoded():
                self._encoded(message)
            case Decoded():
                self._image_done(message)
            case commands.Configure():
                self.models.configure(message)
            case commands.Load(name, folder, version):
                self.models.load(name, folder, version, None)
            case LoadEnded():
                self._end_load(message)
            case commands.InitialLoadsSent():
                self.models.all_named = True
            case Reply():
                self._send(message)
            case ReadingMoved():
                pass  # the next flush sends the status

    def _answer(self, ticket: int, command: commands.Replied) -> None:
        match command:
            case commands.Abort(request_id):
                self._abort(request_id)
                self._send(Reply(ticket))
            case commands.Load(name, folder, version):
                self.models.load(name, folder, version, ticket)
            case commands.Unload(name):
                self.models.retire(name)
                self._sweep()
                self._send(Reply(ticket))
            case commands.Rename(name, to):
                self._send(self.models.rename(name, to, ticket))
                self._sweep()
            case commands.Check(folder):
                self.models.check(folder, ticket)
            case commands.Memory():
                self._send(Reply(ticket, self.models.memory() | {"stash": self._stash.num_bytes}))
            case commands.Seen(request_id):
                self._seen(request_id, ticket)
            case commands.Alternatives() | commands.MeasureReliance() | commands.MeasureAttention():
                self._drawings.work(partial(scored, self.models, command), ticket)

    def _end_load(self, load: LoadEnded) -> None:
        self.models.take(load.name, load.model)
        self._sweep()
        if load.error is not None and load.ticket is None:
            self.models.problem = f"{load.name}: {load.error}"
        if load.ticket is not None:
            error = None if load.error is None else error_pair(load.error, "load_failed")
            self._send(Reply(load.ticket, error=error))
        for live in [live for live in self._live.values() if live.model is None]:
            self._guarded(live.request.request_id, self._find_model, live)

    def _seen(self, request_id: str, ticket: int) -> None:
        live = self._live.get(request_id)
        if live is None or not live.request.images:
            self._send(Reply(ticket, error=("not_live", "no running request with an image has this id")))
        elif live.model is None or live.prompt.previous is None:
            live.seen_tickets.append(ticket)
        else:
            self._drawings.view(live.model, live.prompt.previous, ticket)

    def _sweep(self) -> None:
        """Free retired models without requests."""
        if self.models.num_retired:
            for model in self.models.sweep([model for live in self._live.values() for model in live.models]):
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
            previous = None if state.previous is None else tuple(state.previous)
            live.prompt = Prompt(state.prompt, previous=previous, is_ready=True)
            self._begin(live, state)
        elif self._prompts.share(live, model):
            self._begin(live, None)
        elif live.prompt.waiting == [live]:
            self._encode(live, model)

    def _encode(self, live: Live, model: Model) -> None:
        """Encode the images of a request, the first of its group."""
        request = live.request
        if not request.images and not images_to_encode(live):
            self._encoded(Encoded(live, [], [], None))
        elif not model.loaded.can_see:
            self._encoded(Encoded(live, [], [], ValueError(f"checkpoint {model.name} has no image encoder")))
        else:
            self._drawings.see(live, model)

    def _encoded(self, done: Encoded) -> None:
        ready, failure = self._prompts.fill(done)
        for live in filter(self._is_live, ready):
            if failure is not None:
                self._end(live, failure)
            else:
                self._guarded(live.request.request_id, self._begin, live, None)

    def _begin(self, live: Live, state: ResumeState | None) -> None:
        """Queue the request at its engine."""
        assert live.model is not None
        request, prompt, engine, loaded = live.request, live.prompt, live.model.engine, live.model.loaded
        given = prompt.given
        for ticket in live.seen_tickets:
            self._seen(request.request_id, ticket)
        live.seen_tickets.clear()
        if len(prompt.ids) + len(given.all) >= engine.context_len:
            detail = f"the prompt has {len(prompt.ids) + len(given.all)} tokens, {engine.context_len - 1} fit"
            self._end(live, Failed("prompt_too_long", detail))
            return
        params = state.sampling() if state else request.sampling
        if not loaded.can_draw:
            params = replace(params, max_images=0)
        verifier = verifier_of(self.models, live, params)
        narrator = live.narrator = Narrator(
            loaded.template.parser(),
            partial_images=request.partial_images if verifier is None else 0,
            previous=prompt.previous,
            skip=state.num_parsed if state else 0,
            given=state.given if state else (0, 0),
            step_mode=live.step_mode,
        )
        (live.sequence,) = engine.add_request(
            prompt.ids,
            params,
            request_id=request.request_id,
            resumed=state.tokens if state else given.all,
            num_draws=state.num_draws if state else request.prefix.num_draws,
            kv=self._stash.take(live.model, state.key) if state else None,
            shared=None if state else prompt.rows,
            group=request.group,
            verifier=verifier,
        )
        if state is not None:
            live.kept = (state.kept[0], state.kept[1])
            live.sequence.passes = [0, *state.passes][-1]
            self._drawings.draw(live, narrator.feed_again(state.tokens, state.logprobs, state.passes))
        else:
            self._keep(live, narrator)
        if narrator.paused_after is not None:
            self._start(live)
            self._pause(live)

    def _keep(self, live: Live, narrator: Narrator) -> None:
        """Report the given beginning of the response."""
        given = live.prompt.given
        for number, (step, ids) in enumerate(zip(kept_steps(live), given.steps, strict=True), 1):
            self._drawings.draw(live, narrator.keep(number, ids, decode=is_to_encode(step)))
        self._drawings.draw(live, narrator.begin(given.then))
        live.kept = (len(given.all), narrator.num_images)

    def _guarded(self, request_id: str, work: Callable[..., None], *arguments: Any) -> None:
        """Run the start of a request; an error fails only that request."""
        try:
            work(*arguments)
        except Exception as error:
            code = "bad_resume" if isinstance(error, ResumeError) else getattr(error, "code", "engine_error")
            if code == "engine_error" and not isinstance(error, ValueError):
                log.exception("request %s could not start", request_id)
            self._end(self._live[request_id], Failed(code, str(error)))

    def _is_live(self, live: Live) -> bool:
        return self._live.get(live.request.request_id) is live

    def _abort(self, request_id: str) -> None:
        live = self._live.get(request_id)
        if live is not None:
            self._end(live, Cancelled())
        self._outbox.flush()

    def _set_mode(self, request_id: str, step_mode: bool) -> None:
        live = self._live.get(request_id)
        if live is not None:
            live.step_mode = step_mode
            if live.narrator is not None:
                live.narrator.step_mode = step_mode

    def _end(self, live: Live, output: Output) -> None:
        """Send the request's last output immediately."""
        request_id = live.request.request_id
        for ticket in live.seen_tickets:
            self._send(Reply(ticket, error=("not_live", "the request has ended")))
        self._live.pop(request_id, None)
        if live.model is not None:
            live.model.engine.abort(request_id)
        self._outbox.put(request_id, output)
        self._sweep()

    def _step(self, model: Model) -> None:
        if model.engine.scheduler.is_idle:
            return
        before = progress(model.engine)
        try:
            outputs = model.engine.step()
            for output in outputs:
                self._take(self._live[output.request_id], output)
        except Exception as error:
            ended, failure = settle(model, error, before)
            for live in [live for name, live in self._live.items() if live.model is model and name in ended]:
                self._end(live, failure)

    def _take(self, live: Live, output: SequenceOutput) -> None:
        narrator, sequence, request = live.narrator, live.sequence, live.request
        assert narrator is not None
        assert sequence is not None
        self._start(live)
        if output.finished_by == "error":
            self._end(live, Failed("engine_error", "the weights give NaN for this question"))
            return
        self._drawings.draw(
            live, narrator.feed(output.token, output.logprob, ends_pass=output.ends_pass, passes=output.passes)
        )
        if output.chosen is not None:
            self._drawings.draw(live, candidate_images(live, output.chosen))
        if output.finished_by is not None:
            self._drawings.draw(live, narrator.finish())
            kept_tokens, kept_images = live.kept
            usage = {
                "prompt_tokens": len(sequence.prompt),
                "kept_tokens": kept_tokens,
                "completion_tokens": len(sequence.response) - kept_tokens,
                "images": narrator.num_images - kept_images,
            }
            reason, parser = sequence.state.finish_reason or "length", narrator.parser
            narrator.end(Finished(reason, parser.answer or None, usage, parser.unmarked, narrator.take_tokens()))
        elif narrator.paused_after is not None:
            self._pause(live)
        self._send_events(live)
        log.debug("request %s: %d tokens", request.request_id, len(sequence.response))

    def _start(self, live: Live) -> None:
        if live.started or live.sequence is None or live.model is None:
            return
        live.started = True
        sequence, model = live.sequence, live.model
        state, params = sequence.state, sequence.params
        self._outbox.put(
            live.request.request_id,
            Started(
                prompt_tokens=len(sequence.prompt),
                context_len=model.engine.context_len,
                max_new_tokens=state.max_tokens,
                room_images=max(0, state.max_images - state.images_done),
                temperature=params.temperature,
                top_p=params.top_p,
                weight_version=model.version,
                codec=model.codec,
            ),
        )

    def _pause(self, live: Live) -> None:
        """Free the slot; the request ends with Paused after its pending events."""
        narrator, sequence = live.narrator, live.sequence
        assert narrator is not None
        assert sequence is not None
        assert live.model is not None
        engine = live.model.engine
        key = ""
        if sequence.status is Status.RUNNING:
            key = self._stash.put(live.model, partial(engine.cache.export, sequence.slot, sequence.position))
        state = ResumeState.of(live, sequence, narrator, key)
        engine.abort(live.request.request_id)
        narrator.end(Paused(narrator.paused_after or 0, state.to_bytes()))
        self._send_events(live)

    def _image_done(self, done: Decoded) -> None:
        live = done.live
        if not self._is_live(live) or live.narrator is None:
            return
        if done.result is None:
            log.error("an image of request %s could not be decoded", live.request.request_id, exc_info=done.error)
            self._end(live, Failed("engine_error", f"an image could not be decoded: {done.error}"))
            return
        live.narrator.image_done(done.ticket, done.result)
        self._send_events(live)

    def _send_events(self, live: Live) -> None:
        if not live.started or live.narrator is None or not self._is_live(live):
            return
        request_id = live.request.request_id
        for item in live.narrator.take():
            if isinstance(item, Emitted):
                self._outbox.put(request_id, item)
            elif isinstance(item, Finished | Paused):
                self._end(live, item)
