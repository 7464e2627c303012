"""Rollouts in actors of a Ray cluster, which sample with the weights that the job's worker sends them.

A rollout is a function of weights, prompt and seed, so the actors' are those of an engine in the worker, in fp32 up to
near ties. Imports no Ray.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.checkpoint.checks import skeleton
from model.config import TransformerConfig
from model.engine.engine import Engine
from model.engine.sequence import Completion, SamplingParams
from model.low_rank import LoRASettings
from model.nets.lora import attach, trained_state
from model.nets.transformer import Transformer
from model.text.vocab import Vocabulary
from training.cluster.pool import ActorPool
from training.cluster.pool_actor import Arrays
from training.jobs.context import JobContext
from training.jobs.memory import slots_for


@dataclass(frozen=True)
class Recipe:
    """What an actor's engine is made of, but for the weights; calling it makes the actor's work.

    Attributes:
        config: of the transformer.
        dtype: of its weights.
        lora: its pairs, if it has any.
        vocab: of the checkpoint.
        text_ids: the ids that may be sampled as text.
        context_len: of the longest prompt with its completion.
        device: ``cuda``, if each actor has a GPU, or ``cpu``.
    """

    config: TransformerConfig
    dtype: torch.dtype
    lora: LoRASettings | None
    vocab: Vocabulary
    text_ids: tuple[int, ...]
    context_len: int
    device: str

    def __call__(self) -> EngineWork:
        """Make the work, in the actor."""
        return EngineWork(self)

    def text_legal_ids(self) -> list[int]:
        """As a template's."""
        return list(self.text_ids)


class Request(NamedTuple):
    """Prompts with their sampling parameters, and how many completions each gets."""

    prompts: list[Sequence[int]]
    params: list[SamplingParams]
    num_samples: int


class EngineWork:
    """An actor's engine. It has one thread on a CPU, as it has one CPU."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        if recipe.device == "cpu":
            torch.set_num_threads(1)
        self._transformer = skeleton(lambda: Transformer(recipe.config)).to(recipe.dtype).eval()
        if recipe.lora is not None:
            attach(self._transformer, recipe.lora)
        self._transformer.requires_grad_(False)
        self._engine: Engine | None = None

    def load(self, weights: Arrays) -> None:
        """Copy these tensors into the transformer."""
        state, first = self._transformer.state_dict(), {}
        with torch.no_grad():
            for name, array in weights.items():
                tensor = _tensor(array, like=state[name])
                if state[name].is_meta:
                    first[name] = tensor.to(self._recipe.device)
                else:
                    state[name].copy_(tensor)
        self._transformer.load_state_dict(first, strict=False, assign=True)
        if self._engine is not None:
            self._engine.refresh()

    def __call__(self, request: Request) -> list[Completion]:
        """Sample a share of a step."""
        if self._engine is None:
            slots = slots_for(self._transformer, self._recipe.context_len)
            self._engine = Engine(
                self._transformer,
                self._recipe.vocab,
                self._recipe,
                num_slots=slots,
                context_len=self._recipe.context_len,
                admissions_per_step=slots,
            )
        return self._engine.generate(request.prompts, request.params, num_samples=request.num_samples)


class RemoteEngines:
    """The actors, used like one `Engine`: `refresh` after a change of weights, and `generate`."""

    def __init__(self, pool: ActorPool, transformer: Transformer) -> None:
        """``transformer`` is the module in training."""
        self._pool, self._transformer = pool, transformer
        self._is_stale, self._has_fixed = True, False

    def refresh(self) -> None:
        """Have the next call use the module's weights as they are then."""
        self._is_stale = True

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        num_samples: int = 1,
        on_finish: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """As :meth:`model.engine.engine.Engine.generate`; ``on_finish`` is also called while nothing finishes.

        Raises:
            PoolError: the cluster is gone, or gives no actors.
        """
        if self._is_stale:
            self._send()
        shares = [
            Request(list(prompts[part]), list(params[part]), num_samples)
            for part in parts(len(prompts), self._pool.count)
        ]

        def poll(done: Collection[int]) -> None:
            if on_finish is not None:
                on_finish(num_samples * sum(len(shares[index].prompts) for index in done))

        return [completion for share in self._pool.work(shares, poll) for completion in share]

    def _send(self) -> None:
        """Send what training changes, with LoRA the pairs alone: the frozen rest goes once."""
        trained = trained_state(self._transformer)
        if not self._has_fixed:
            rest = {name: t for name, t in self._transformer.state_dict().items() if name not in trained}
            self._pool.send(_arrays(rest), fixed=True)
            self._has_fixed = True
        self._pool.send(_arrays(trained))
        self._is_stale = False


@contextlib.contextmanager
def remote_engines(
    ctx: JobContext,
    transformer: Transformer,
    vocab: Vocabulary,
    text_ids: Sequence[int],
    *,
    count: int,
    context_len: int,
    lora: LoRASettings | None,
) -> Iterator[RemoteEngines]:
    """So many actors for a job, each with a CPU, or with a GPU if the job has one; they end with the block.

    Args:
        ctx: the job.
        transformer: the module in training, with its pairs.
        vocab: of the checkpoint.
        text_ids: the ids that may be sampled as text.
        count: number of actors.
        context_len: of the longest prompt with its completion.
        lora: the settings of the pairs, if there are any.
    """
    device = "cuda" if torch.device(ctx.device).type == "cuda" else "cpu"
    recipe = Recipe(transformer.config, transformer.dtype, lora, vocab, tuple(text_ids), context_len, device)
    pool = ActorPool(recipe, count, gpus=int(device == "cuda"), note=ctx.disk.note, say=ctx.log.log)
    try:
        yield RemoteEngines(pool, transformer)
    finally:
        pool.close()


def parts(count: int, most: int) -> list[slice]:
    """Cut ``count`` items into at most ``most`` runs of equal length, give or take one; none is empty."""
    number = min(count, most)
    return [slice(count * i // number, count * (i + 1) // number) for i in range(number)]


def _arrays(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Any]]:
    """The bytes of every tensor; numpy does not know bf16."""
    for name, tensor in state.items():
        yield name, tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _tensor(array: Any, *, like: Tensor) -> Tensor:
    """The tensor of these bytes, with type and shape of another one; a copy, since Ray's arrays are read-only."""
    return torch.from_numpy(array.copy()).view(like.dtype).view(like.shape)
