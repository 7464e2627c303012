"""The synchronous core: continuous batching of many sequences over one set of weights.

Knows token ids, slots and weights; no text, images, processes or clocks. One call of `step` admits waiting sequences,
prefills each one separately, and samples one token for every running sequence, or several codes of an image
(`drafts.py`). Sequences in a batch share only the kernels, whose rounding depends on the number of rows: in fp32,
log-probabilities move by less than 1e-4, so tokens only change where a choice lies within 1e-4.

    engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=16)
    completions = engine.generate(prompts, SamplingParams(temperature=0.0))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import partial

import torch
from torch import Tensor

from model.engine.candidates import Candidates
from model.engine.drafts import MOST_ROWS, Drafts, nan_rows, num_accepted
from model.engine.layout import Weights
from model.engine.phases import Legal, LegalIds, LegalText, PhaseRules
from model.engine.sampling import RowParams, choose
from model.engine.scheduler import Scheduler
from model.engine.sequence import (
    Completion,
    FinishedBy,
    PrefixRows,
    SamplingParams,
    Sequence,
    SequenceOutput,
    Status,
    Verifier,
)
from model.nets.attention import Attention, PackedAttention, PackedLayout
from model.nets.decode_step import DecodeStep
from model.nets.graphs import Graphs
from model.nets.page_cache import PageCache
from model.nets.quantised import product
from model.nets.slot_cache import Held, SequenceCache, SlotCache
from model.nets.transformer import Transformer
from model.paging import PAGE, graph_sizes
from model.speculation import WINDOW
from model.text.vocab import Vocabulary


class Engine:
    """Sequences in, tokens out. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        transformer: Transformer,
        vocab: Vocabulary,
        template: LegalText,
        *,
        num_slots: int = 16,
        context_len: int | None = None,
        admissions_per_step: int = 2,
        keep_parameters: bool = True,
        speculation: int = WINDOW,
        num_pages: int | None = None,
        page: int = PAGE,
        graphs: bool | None = None,
    ) -> None:
        """`template` provides the ids that may be sampled as text, except begin-image.

        Without `keep_parameters` (for serving: no `refresh` afterwards) every layer's parameters are freed once the
        engine has its own copy. `speculation` is the most codes of an image that one pass may give; 0 means one. With
        `num_pages`, keys and values lie in so many pages of `page` positions, which sequences take as they grow;
        otherwise each slot has a whole context. `graphs`: pad passes over pages to a few shapes, which are CUDA graphs
        on CUDA; None: there, without `keep_parameters`.

        Raises:
            ValueError: the context exceeds the model's, or the pages do not hold one.
        """
        config = transformer.config
        context_len = context_len or config.max_position_embeddings
        if context_len > config.max_position_embeddings:
            raise ValueError(f"context_len {context_len} exceeds the model's {config.max_position_embeddings}")
        self.device, self.dtype = transformer.device, transformer.dtype
        self.transformer, self.context_len = transformer, context_len
        self.rules = PhaseRules(vocab.boi_id, vocab.eoi_id, vocab.eos_id, vocab.codes_per_image)
        self.scheduler = Scheduler(num_slots, admissions_per_step=admissions_per_step)
        legal = LegalIds.of(template, vocab)  # begin-image is the last text column, so forbidding it is one addition
        self._text_ids, self._code_ids = list(legal.text), list(legal.codes)
        self._params: RowParams | None = None
        self.num_steps = self.num_prefills = 0
        self._stack(release=not keep_parameters)
        self._drafts = Drafts(self.rules, speculation)
        shape, device, dtype = (config, num_slots, context_len), self.device, self.dtype
        if num_pages is None:
            self.cache: SequenceCache = SlotCache(*shape, device=device, dtype=dtype)
        else:
            padded = graphs if graphs is not None else device.type == "cuda" and not keep_parameters
            sizes = graph_sizes(max(num_slots, MOST_ROWS * speculation), context_len) if padded else ()
            self.cache = PageCache(*shape, num_pages=num_pages, page=page, sizes=sizes, device=device, dtype=dtype)
        self._step = DecodeStep(transformer) if DecodeStep.serves(transformer) else None
        self._candidates = Candidates(self.scheduler, self.cache, self._remove)

    def refresh(self) -> None:
        """Rebuild the stacked weights from the module's parameters; call after every optimiser step."""
        del self._weights, self._run, self._graphs  # the old copy goes before the new one is made
        self._stack(release=False)
        self.cache.forget()

    def _stack(self, *, release: bool) -> None:
        """Copy the weights into the engine's layout; `release` frees the parameters on the way."""
        self._weights = Weights.of(self.transformer, self._text_ids, self._code_ids, release=release)
        self._run = partial(self.transformer, weights=self._weights.layers)
        self._graphs = Graphs(self._run, self.device)

    def reset(self) -> None:
        """Drop the running sequences and anything a failed step left in the cache."""
        for sequence in list(self.scheduler.running):
            for member in (sequence,) if sequence.fork is None else sequence.fork.members:
                self.scheduler.remove(member, Status.ABORTED)
        self.cache.reset()
        self._params = None

    @property
    def num_weight_bytes(self) -> int:
        """Bytes of the weights that a step reads, including the embedding."""
        return self._weights.num_bytes

    @property
    def num_running(self) -> int:
        """Sequences with a slot."""
        return len(self.scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot."""
        return len(self.scheduler.waiting)

    def add_request(
        self,
        prompt_ids: Seq[int],
        params: SamplingParams,
        *,
        request_id: str,
        num_samples: int = 1,
        resumed: Seq[int] = (),
        num_draws: int = 0,
        kv: Tensor | None = None,
        shared: PrefixRows | None = None,
        group: str | None = None,
        verifier: Verifier | None = None,
    ) -> list[Sequence]:
        """Queue `num_samples` samples of one prompt; they share its prefill.

        `resumed` are existing response tokens (a paused trace, or a given beginning), `num_draws` the random numbers
        they consumed, `kv` their rows, as `cache.export` copies them, if available. Requests with the same `shared`
        (and the same tokens) share one prefill; those with the same `group` leave two slots to others. `verifier`
        chooses among candidates.

        Raises:
            ValueError: the prompt leaves no room, an id lies outside the vocabulary, or candidates lack a verifier.
        """
        if params.candidates > 1 and verifier is None:
            raise ValueError(f"{params.candidates} candidates need a verifier")
        size = self.transformer.config.vocab_size
        for token in (*prompt_ids, *resumed):
            if not 0 <= token < size:
                raise ValueError(f"token id {token} is outside the vocabulary of {size}")
        create = partial(Sequence.create, rules=self.rules, context_len=self.context_len, num_draws=num_draws)
        sequences = [
            create(request_id, index, list(prompt_ids), params, resumed=list(resumed)) for index in range(num_samples)
        ]
        held = None if kv is None else Held(kv.shape[-2], kv)
        shared = PrefixRows() if shared is None and num_samples > 1 else shared
        for sequence in sequences:
            sequence.kv, sequence.shared, sequence.group, sequence.verifier = held, shared, group, verifier
            self.scheduler.add(sequence)
        return sequences

    def abort(self, request_id: str) -> int:
        """Drop every sequence of a request immediately; return how many there were, candidates not counted."""
        sequences = self.scheduler.find(request_id)
        for sequence in sequences:
            self._remove(sequence, Status.ABORTED)
        return len({sequence.index for sequence in sequences})

    def warm_up(self) -> None:
        """Run a pass of each fixed shape, so that no trace waits until it is captured. No sequence may be running."""
        for one in self.cache.fixed_passes():
            self._forward(0, *one)

    @torch.inference_mode()
    def forward(self, ids: Seq[int], attention: Attention) -> Tensor:
        """Hidden states [T, D] of a whole sequence, without the cache; may run in another thread than `step`."""
        both = torch.tensor([list(ids), list(range(len(ids)))]).to(self.device)
        return self._run(both[:1], both[1:], attention)[0]  # type: ignore[no-any-return]

    @torch.inference_mode()
    def forward_packed(self, ids: Seq[int], layout: PackedLayout) -> Tensor:
        """Hidden states [T, D] of packed sequences, otherwise like `forward`."""
        flat = torch.tensor(list(ids), device=self.device)
        return self._run(flat, layout.positions, PackedAttention(layout))  # type: ignore[no-any-return]

    @torch.inference_mode()
    def logits(self, hidden: Tensor, legal: Legal) -> Tensor:
        """Hidden states [n, D] -> logits [n, L] over a legal set, in the order of `ids_of`; -inf where not legal."""
        logits = product(hidden, self._weights.code_head if legal is Legal.CODE else self._weights.text_head)
        if legal is Legal.TEXT:
            logits[:, -1] = float("-inf")
        return logits.float()

    def ids_of(self, legal: Legal) -> Seq[int]:
        """The token ids of the columns of `logits`; begin-image is the last of a text's."""
        return self._code_ids if legal is Legal.CODE else self._text_ids

    @torch.inference_mode()
    def step(self) -> list[SequenceOutput]:
        """Admit, prefill, and sample the next token of every running sequence, or the next codes of its image.

        The codes of an image with candidates are returned together, once one has been chosen.
        """
        for sequence in self.scheduler.admit(self._has_room, self._is_prepared):
            self._fill(sequence)
            self._params = None
        if not self.scheduler.running:
            if self.scheduler.lacks_room:  # perhaps because of what is held
                self.cache.let_go()
            return []
        self.num_steps += 1
        stepped, guesses = self._with_room()
        if guesses is None:
            self._params = self._params or RowParams.of([s.params for s in stepped], self.device)
            last = self.cache.decode([s.last_token for s in stepped], [s.position for s in stepped])
            tokens, logprobs = self._draw(stepped, self._forward(len(stepped), *last), self._params)
            each = [[self._push(*row)] for row in zip(stepped, tokens, logprobs, strict=True)]
        else:
            each = self._verify(stepped, guesses)
        # Slots move only after every position has its cached rows again.
        return [one for row in zip(stepped, each, strict=True) for one in self._candidates.take(*row)]

    def generate(
        self,
        prompts: Seq[Seq[int]],
        params: SamplingParams | Seq[SamplingParams],
        *,
        num_samples: int = 1,
        verifier: Verifier | None = None,
        on_finish: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Run prompts to completion: `num_samples` completions each, those of prompt 0 first.

        `on_finish` receives the number of completions so far. Must not be mixed with `add_request`.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        sequences: list[Sequence] = []
        for number, (prompt, one) in enumerate(zip(prompts, each, strict=True)):
            sequences += self.add_request(
                prompt, one, request_id=f"generate-{number}", num_samples=num_samples, verifier=verifier
            )
        reasons: dict[tuple[str, int], FinishedBy] = {}
        while not self.scheduler.is_idle:
            for output in self.step():
                if output.finished_by is not None:
                    reasons[output.request_id, output.index] = output.finished_by
                    if on_finish is not None:
                        on_finish(len(reasons))
        return [Completion(s.response, s.logprobs, bytes(s.legal), reasons[s.request_id, s.index]) for s in sequences]

    def _has_room(self, new: list[Sequence]) -> bool:
        return self.cache.has_room([s.position + 1 - s.num_shared for s in new])

    def _is_prepared(self, sequence: Sequence) -> bool:
        """Running sequences wait for a part of a long prompt at a time."""
        try:
            waits = self.scheduler.running and (sequence.kv is None or not sequence.kv.is_whole)
            return not waits or self.cache.prepare(sequence.prefix, self._run)
        except RuntimeError:  # its prefill fails the same way, and then it is this sequence's failure
            return True

    def _fill(self, sequence: Sequence) -> None:
        """Compute the keys and values of all but the last token into the sequence's slot."""
        length, slot, shared = sequence.position, sequence.slot, sequence.shared
        held = shared.rows if sequence.kv is None and shared is not None else sequence.kv
        if held is not None and held.length == length and held.is_whole:
            self.cache.restore(slot, sequence.prefix, held)
        else:
            self.num_prefills += length > 0
            self.cache.prefill(slot, sequence.prefix, self._run)
            if shared is not None and length and not self.cache.grows:  # pages share what is long by themselves
                shared.rows = self.cache.hold(slot, length)
        sequence.kv = sequence.shared = None
        self._candidates.fork(sequence)

    def _with_room(self) -> tuple[list[Sequence], list[list[int]] | None]:
        """The running sequences and their guesses; the newest ones wait until there is room for what they write."""
        while True:
            stepped = list(self.scheduler.running)
            guesses = self._drafts.guesses(stepped)
            if not self.cache.grows:
                return stepped, guesses
            widths = [1] * len(stepped) if guesses is None else [1 + len(guess) for guess in guesses]
            needs = sorted(zip(stepped, widths, strict=True), key=lambda need: need[0].admission)
            if all(self.cache.reserve(s.slot, s.position + width) for s, width in needs):
                return stepped, guesses
            if len(needs) == 1:  # what others hold leaves no room for a context
                self.cache.let_go()
                if not self.cache.reserve(stepped[0].slot, stepped[0].position + widths[0]):
                    raise RuntimeError("no free pages for the only sequence that runs")
                continue
            newest = needs[-1][0]
            self._remove(newest, Status.WAITING)
            self.scheduler.add_first([newest])

    def _forward(self, count: int, ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Hidden states [count, D] of the first tokens; the rest is padding."""
        if self._step is not None:
            return self._step(ids, positions, attention, self._weights.layers, self._weights.final_norm)[:count]
        return self._graphs(ids, positions, attention)[:count]

    def _verify(self, running: list[Sequence], guesses: list[list[int]]) -> list[list[SequenceOutput]]:
        """Draw the next token of every row, and those after it as long as they are as guessed."""
        widths = [1 + len(guess) for guess in guesses]
        ids = [token for s, guess in zip(running, guesses, strict=True) for token in (s.last_token, *guess)]
        hidden = self._forward(len(ids), *self.cache.windows(ids, [s.position for s in running], widths))
        places = [s for s, width in zip(running, widths, strict=True) for _ in range(width)]
        params = RowParams.of([s.params for s in places], self.device)
        tokens, logprobs = self._draw(places, hidden, params, [place for width in widths for place in range(width)])
        each, start = [], 0
        spoiled = nan_rows(widths, logprobs)
        if any(bad and guess for bad, guess in zip(spoiled, guesses, strict=True)):  # perhaps by a guess
            for sequence, bad in zip(running, spoiled, strict=True):
                if bad:
                    self.cache.clear(sequence.slot, sequence.position)
            return self._verify(running, [[] if bad else guess for bad, guess in zip(spoiled, guesses, strict=True)])
        for sequence, guess in zip(running, guesses, strict=True):
            drawn, first = tokens[start : start + len(guess) + 1], sequence.position
            count = num_accepted(drawn, guess)
            codes = zip(drawn[:count], logprobs[start : start + count], range(1, count + 1), strict=True)
            outputs = [self._push(sequence, t, logprob, ends_pass=n == count) for t, logprob, n in codes]
            self.cache.settle(sequence.slot, first, first + count)
            if guess:
                self._drafts.settle(sequence, drawn, count)
            start += len(drawn)
            each.append(outputs)
        return each

    def _draw(
        self, running: list[Sequence], hidden: Tensor, all_params: RowParams, ahead: Seq[int] | None = None
    ) -> tuple[list[int], list[float]]:
        """Hidden states [n, D] -> a legal token and its log-prob for the sequence of each row.

        Row i draws the token that is `ahead[i]` tokens after its sequence's next one.
        """
        text = [row for row, s in enumerate(running) if s.state.legal in (Legal.TEXT, Legal.TEXT_OR_IMAGE)]
        codes = [row for row, s in enumerate(running) if s.state.legal is Legal.CODE]
        tokens = [s.state.forced_id for s in running]
        logprobs = [0.0] * len(running)
        heads = self._weights
        for rows, ids, head in ((text, self._text_ids, heads.text_head), (codes, self._code_ids, heads.code_head)):
            if not rows:
                continue
            states, params, group = hidden, all_params, [running[row] for row in rows]
            if len(rows) < len(running):
                index = torch.tensor(rows, device=self.device)
                states, params = hidden.index_select(0, index), params.select(index)
            logits = product(states, head)
            if rows is text:
                is_closed = [s.state.legal is Legal.TEXT for s in group]
                if all(is_closed):
                    logits[:, -1] = float("-inf")
                elif any(is_closed):
                    closed = [float("-inf") if c else 0.0 for c in is_closed]
                    logits[:, -1] += torch.tensor(closed, device=self.device)
            numbers = [s.draws.peek(0 if ahead is None else ahead[row]) for row, s in zip(rows, group, strict=True)]
            for row, choice, logprob in zip(rows, *choose(logits, params, numbers), strict=True):
                tokens[row] = -1 if math.isnan(logprob) else ids[choice]
                logprobs[row] = logprob
        return tokens, logprobs

    def _push(self, sequence: Sequence, token: int, logprob: float, *, ends_pass: bool = True) -> SequenceOutput:
        legal = sequence.state.legal
        if token < 0:  # NaN logits: end this sequence only
            self.cache.clear(sequence.slot)
            return SequenceOutput(sequence.request_id, sequence.index, -1, logprob, legal, "error")
        sequence.push(token, logprob, ends_pass=ends_pass)
        reason, passes = sequence.state.finish_reason, sequence.passes if legal is Legal.CODE else 0
        name, index = sequence.request_id, sequence.index
        return SequenceOutput(name, index, token, logprob, legal, reason, ends_pass=ends_pass, passes=passes)

    def _remove(self, sequence: Sequence, status: Status) -> None:
        slot = sequence.slot
        self._candidates.ended(sequence, status)
        moved = self.scheduler.remove(sequence, status)
        self._params = None
        if moved is not None:
            self.cache.move(self.num_running, slot, moved.position)
        elif slot >= 0:
            self.cache.free(slot)
