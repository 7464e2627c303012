"""Prompts of requests, and which requests share one. Belongs to the worker's thread."""

from __future__ import annotations

from weakref import WeakValueDictionary

from model.engine.messages import Failed, Prefix
from model.engine.sequence import PrefixRows
from model.text.prefix import GivenStep, given_ids
from model.worker.drawings import Encoded, is_to_encode, kept_steps
from model.worker.models import Model
from model.worker.requests import Live, Prompt


class Prompts:
    """One prompt for each request without a group, and for each prefix of a group on each model."""

    def __init__(self) -> None:
        self._groups: WeakValueDictionary[tuple[str, str, int, Prefix], Prompt] = WeakValueDictionary()

    def share(self, live: Live, model: Model) -> bool:
        """Give a request the prompt of its group and prefix; returns whether it is ready. If not, the request waits."""
        group = live.request.group
        if group is not None:
            key = (group, model.name, model.version, live.request.prefix)
            shared = self._groups.get(key)
            if shared is None:
                self._groups[key] = live.prompt
                live.prompt.rows = PrefixRows()
            else:
                live.prompt = shared
        if not live.prompt.is_ready:
            live.prompt.waiting.append(live)
        return live.prompt.is_ready

    def fill(self, done: Encoded) -> tuple[list[Live], Failed | None]:
        """Render the prompt once its images are encoded; returns the requests that waited for it, or why they fail."""
        prompt, model = done.live.prompt, done.live.model
        assert model is not None
        waiting, prompt.waiting = prompt.waiting, []
        if done.error is not None:
            return waiting, Failed("bad_image", f"an image cannot be read: {done.error}")
        try:
            self._render(prompt, done, model)
        except ValueError as error:
            return waiting, Failed("engine_error", str(error))
        prompt.is_ready = True
        return waiting, None

    def _render(self, prompt: Prompt, done: Encoded, model: Model) -> None:
        template, request = model.loaded.template, done.live.request
        encoded, prefix = iter(done.kept), request.prefix
        steps = [
            GivenStep(step.text, next(encoded) if is_to_encode(step) else step.codes, step.tokens)
            for step in kept_steps(done.live)
        ]
        prompt.ids = template.prompt_ids(request.question, done.question)
        prompt.given = given_ids(
            template,
            steps,
            then_tokens=prefix.then_tokens,
            then_text=prefix.then_text,
            then_answer=prefix.then_answer,
        )
        prompt.previous = done.question[-1] if done.question else None
