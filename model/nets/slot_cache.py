"""A whole context of keys and values for each running sequence: the cache of CPUs, and of what has no paged kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from model.config import TransformerConfig
from model.nets.attention import Attention
from model.nets.kv_cache import DecodeAttention, KVCache, PrefillAttention
from model.nets.window_attention import WindowAttention

Run = Callable[[Tensor, Tensor, Attention], object]  # ids [T], positions [T], attention: one forward pass
Pass = tuple[Tensor, Tensor, Attention]


@dataclass(frozen=True, slots=True)
class Held:
    """The first `length` positions of a sequence, which stay as they are while it goes on.

    Attributes:
        length: their number.
        rows: keys and values from `start` on, copied, [2, layers, J, length - start, K].
        start: how many lie in `pages`.
        pages: shared with other sequences until the cache lets go of them; then the list is empty.
        once: they are given back when a sequence has started from them.
    """

    length: int
    rows: Tensor
    start: int = 0
    pages: list[int] = field(default_factory=list)
    once: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the cache has not let go of them."""
        return self.start == 0 or bool(self.pages)

    def followed_by(self, rows: Tensor) -> Held:
        """The same positions and those of `rows`, to be used once."""
        more = torch.cat([self.rows, rows], dim=-2)
        return replace(self, length=self.start + more.shape[-2], rows=more, once=True)


class SequenceCache(Protocol):
    """Keys and values of the sequences in slots 0 ... n-1, as the engine uses them."""

    num_slots: int
    context_len: int
    grows: bool  # whether a running sequence may lack room

    @property
    def num_bytes(self) -> int:
        """Size of the keys and values together."""
        ...

    def has_room(self, lengths: Sequence[int]) -> bool:
        """Whether new sequences of these lengths can start, without the running ones losing theirs."""
        ...

    def reserve(self, slot: int, length: int) -> bool:
        """Make room for a slot's first `length` positions; False if there is none."""
        ...

    def prefill(self, slot: int, ids: Sequence[int], run: Run) -> None:
        """Compute the keys and values of a sequence's first tokens with one or more passes."""
        ...

    def prepare(self, ids: Sequence[int], run: Run) -> bool:
        """Compute a part of what :meth:`prefill` of these tokens will need; False if more than one part was left.

        The caller has asked whether there is room.
        """
        ...

    def hold(self, slot: int, length: int) -> Held:
        """Keep a slot's first positions for sequences that will start from them."""
        ...

    def restore(self, slot: int, ids: Sequence[int], held: Held) -> None:
        """Start a sequence from what is held: the keys and values of these tokens."""
        ...

    def let_go(self, held: Held | None = None) -> None:
        """Give back what is held, or everything that is."""
        ...

    def decode(self, ids: Sequence[int], positions: Sequence[int]) -> Pass:
        """The pass of one new token for each slot, at its position."""
        ...

    def windows(self, ids: Sequence[int], starts: Sequence[int], widths: Sequence[int]) -> Pass:
        """The pass of several new tokens for each slot, from its position in `starts` on."""
        ...

    def fixed_passes(self) -> Iterable[Pass]:
        """A pass of each fixed shape, over no sequence; none if passes have any shape."""
        ...

    def settle(self, slot: int, start: int, stop: int) -> None:
        """Positions `start` ... `stop - 1` of a window stay; later ones will be written again."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Move a sequence into a slot whose own one has ended."""
        ...

    def free(self, slot: int) -> None:
        """The slot's sequence has ended, and none takes its place."""
        ...

    def clear(self, slot: int, start: int = 0) -> None:
        """Zero a slot from a position on, where NaN may be: masked positions would spread it (0 * NaN)."""
        ...

    def export(self, slot: int, length: int, *, start: int = 0) -> Tensor:
        """Copy a slot's positions from `start` to `length`, [2, layers, J, length - start, K]."""
        ...

    def forget(self) -> None:
        """The weights have changed: nothing that ended sequences have computed may be used again."""
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...


class SlotCache(KVCache):
    """A :class:`SequenceCache` of `num_slots` whole contexts."""

    grows = False

    def __init__(self, config: TransformerConfig, num_slots: int, context_len: int, **place: Any) -> None:
        """`place`: device and dtype, as of :class:`KVCache`."""
        super().__init__(config, num_slots, context_len, **place)
        groups = config.num_heads // config.num_kv_heads
        self._device = self.keys.device
        self._decode = DecodeAttention(self, groups=groups)
        self._windows = WindowAttention(self, groups=groups)

    def has_room(self, lengths: Sequence[int]) -> bool:
        """Always: a slot has room for a context."""
        return True

    def reserve(self, slot: int, length: int) -> bool:
        """Always."""
        return True

    def prefill(self, slot: int, ids: Sequence[int], run: Run) -> None:
        """One pass."""
        if ids:
            tokens = torch.tensor(ids, device=self._device)
            run(tokens, torch.arange(len(ids), device=self._device), PrefillAttention(self, slot))
        self._decode.open(slot, len(ids))

    def prepare(self, ids: Sequence[int], run: Run) -> bool:
        """Nothing: a prefill is one pass."""
        return True

    def hold(self, slot: int, length: int) -> Held:
        """A copy."""
        return Held(length, self.export(slot, length))

    def restore(self, slot: int, ids: Sequence[int], held: Held) -> None:
        """See :class:`SequenceCache`."""
        self.write_rows(slot, held.rows)
        self._decode.open(slot, len(ids))

    def let_go(self, held: Held | None = None) -> None:
        """Nothing: a copy ends with its last user."""

    def decode(self, ids: Sequence[int], positions: Sequence[int]) -> Pass:
        """See :class:`SequenceCache`."""
        both = torch.tensor([ids, positions]).to(self._device)
        self._decode.begin(both[1], max(positions) + 1)
        return both[0], both[1], self._decode

    def windows(self, ids: Sequence[int], starts: Sequence[int], widths: Sequence[int]) -> Pass:
        """See :class:`SequenceCache`."""
        positions = self._windows.begin(starts, widths)
        return torch.tensor(ids).to(self._device), positions, self._windows

    def fixed_passes(self) -> Iterable[Pass]:
        """None."""
        return ()

    def settle(self, slot: int, start: int, stop: int) -> None:
        """See :class:`SequenceCache`."""
        self._decode.open_more(slot, start, stop)

    def move(self, source: int, target: int, length: int) -> None:
        """See :class:`SequenceCache`."""
        self.copy(source, target, length)
        self._decode.open(target, length)

    def free(self, slot: int) -> None:
        """Nothing: the next sequence overwrites it."""

    def forget(self) -> None:
        """Nothing: no sequence uses another one's rows."""

    def reset(self) -> None:
        """Zero everything."""
        for slot in range(self.num_slots):
            self.clear(slot)
