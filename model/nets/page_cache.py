"""Keys and values in pages, which sequences take as they grow: many sequences in little memory, prefixes held once.

A prompt is prefilled in chunks of two pages. Each whole chunk is known by the hash of all tokens up to its end, and a
sequence that begins with the same ones takes its pages instead of computing them. A chunk without users stays until its
pages are needed. Chunks always begin at the same places, so all sequences would compute the same rows.

Legend: P pages of B positions, S slots, J key/value heads, K head dim, n rows, T tokens.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import blake2b

import torch
from torch import Tensor

from model.config import TransformerConfig
from model.nets.paged_attention import PagedAttention
from model.nets.slot_cache import Held, Pass, Run
from model.paging import CHUNK, PAGE, pages_of


class PageCache:
    """A :class:`model.nets.slot_cache.SequenceCache` of pages; keys and values are [layers, P, B, J, K] each."""

    grows = True

    def __init__(
        self,
        config: TransformerConfig,
        num_slots: int,
        context_len: int,
        *,
        num_pages: int,
        page: int = PAGE,
        sizes: Sequence[int] = (),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate all pages.

        `sizes` are numbers of tokens, ascending: passes over running sequences are padded to the next one, up to the
        last, and keep their shape and memory (see :class:`PagedAttention`).

        Raises:
            ValueError: a context does not fit into them.
        """
        if num_pages * page < context_len:
            raise ValueError(f"{num_pages} pages of {page} positions do not hold a context of {context_len}")
        shape = (config.num_layers, num_pages, page, config.num_kv_heads, config.head_dim)
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self.num_slots, self.context_len, self.page = num_slots, context_len, page
        self._device = torch.device(device)
        attention = partial(PagedAttention, self.keys, self.values, groups=config.num_heads // config.num_kv_heads)
        self._attention = attention()
        self._padded = {size: attention(longest=context_len) for size in sizes}
        self._held: dict[int, list[int]] = {}  # pages of everything that is held, by `id` of the list
        self.reset()

    @property
    def num_bytes(self) -> int:
        """Size of the keys and values together."""
        return 2 * self.keys.nbytes

    @property
    def num_free(self) -> int:
        """Pages that no sequence uses."""
        return len(self._free) + sum(map(len, self._idle.values()))

    def reset(self) -> None:
        """Forget everything."""
        self.keys.zero_()
        self.values.zero_()
        self._free = list(range(self.keys.shape[1]))[::-1]
        self._users = [0] * self.keys.shape[1]
        self._tables: list[list[int]] = [[] for _ in range(self.num_slots + 1)]  # the last one is for `prepare`
        self._known: dict[bytes, list[int]] = {}  # chunks by the hash of all tokens up to their end
        self._key_of: dict[int, bytes] = {}  # of the pages of known chunks
        self._idle: OrderedDict[bytes, list[int]] = OrderedDict()  # known chunks without users, the oldest first
        self._spoiled: set[int] = set()  # pages that may hold NaN
        for pages in self._held.values():
            pages.clear()
        self._held.clear()

    # ---- room

    def has_room(self, lengths: Sequence[int]) -> bool:
        """Whether these lengths fit, and after them another page for each running sequence."""
        running = sum(bool(table) for table in self._tables)
        return sum(self._pages(length) for length in lengths) + running <= self.num_free

    def reserve(self, slot: int, length: int) -> bool:
        """See :class:`model.nets.slot_cache.SequenceCache`."""
        table = self._tables[slot]
        while len(table) < self._pages(length):
            if not self._free and not self._forget_oldest():
                return False
            page = self._free.pop()
            self._users[page] = 1
            table.append(page)
        return True

    def free(self, slot: int) -> None:
        """Give back a slot's pages."""
        table, self._tables[slot] = self._tables[slot], []
        self._give_back(table)

    def _give_back(self, pages: Sequence[int]) -> None:
        for page in reversed(pages):  # a chunk without those before it is of no use, so the last one goes first
            self._users[page] -= 1
            if self._users[page]:
                continue
            key = self._key_of.get(page)
            if key is None:
                if page in self._spoiled:
                    self._spoiled.remove(page)
                    self._zero(page)
                self._free.append(page)
            elif all(self._users[other] == 0 for other in self._known[key]):
                self._idle[key] = self._known[key]

    def move(self, source: int, target: int, length: int) -> None:
        """See :class:`model.nets.slot_cache.SequenceCache`."""
        self.free(target)
        self._tables[target], self._tables[source] = self._tables[source], []

    def _pages(self, length: int) -> int:
        return pages_of(length, self.page)

    # ---- what is known

    def _keys(self, ids: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """The first page of each whole chunk, and the hash of all tokens up to its end."""
        size, digest = CHUNK * self.page, b""
        for start in range(0, len(ids) - size + 1, size):
            digest = blake2b(digest + array("q", ids[start : start + size]).tobytes(), digest_size=16).digest()
            yield start // self.page, digest

    def _attach(self, slot: int, ids: Sequence[int]) -> int:
        """Give an empty slot the known chunks that its tokens begin with; returns their positions."""
        self.free(slot)
        for _, key in self._keys(ids):
            pages = self._known.get(key)
            if pages is None:
                break
            self._idle.pop(key, None)
            for page in pages:
                self._users[page] += 1
            self._tables[slot] += pages
        return len(self._tables[slot]) * self.page

    def _learn(self, slot: int, ids: Sequence[int]) -> None:
        """Know a slot's whole chunks from now on."""
        for first, key in self._keys(ids):
            if key in self._idle:  # without a chunk before it, it had to be computed again
                self._forget(key)
            if key not in self._known:
                self._known[key] = self._tables[slot][first : first + CHUNK]
                self._key_of |= dict.fromkeys(self._known[key], key)

    def forget(self) -> None:
        """See :class:`model.nets.slot_cache.SequenceCache`."""
        while self._forget_oldest():
            pass
        for key in list(self._known):
            self._forget(key)

    def _forget_oldest(self) -> bool:
        """Free the pages of the chunk that has been without users longest; False if there is none."""
        if not self._idle:
            return False
        self._forget(next(iter(self._idle)))
        return True

    def _forget(self, key: bytes) -> None:
        self._idle.pop(key, None)
        for page in self._known.pop(key):
            del self._key_of[page]
            if not self._users[page]:
                self._free.append(page)

    # ---- rows

    def prefill(self, slot: int, ids: Sequence[int], run: Run) -> None:
        """One pass for each chunk that is not known. The caller has asked whether there is room."""
        start, size = self._attach(slot, ids), CHUNK * self.page
        self._take(slot, len(ids))
        while start < len(ids):
            part = ids[start : start + size]
            run(*self._attention.begin(part, self._tables[slot : slot + 1], [start], [len(part)]), self._attention)
            start += len(part)
        self._learn(slot, ids)

    def prepare(self, ids: Sequence[int], run: Run) -> bool:
        """See :class:`model.nets.slot_cache.SequenceCache`: the part is a chunk, known from then on."""
        slot, size = self.num_slots, CHUNK * self.page
        try:
            start = self._attach(slot, ids)
            stop = start + size
            if len(ids) <= stop:
                return True
            self._take(slot, stop)
            run(*self._attention.begin(ids[start:stop], self._tables[slot:], [start], [size]), self._attention)
            self._learn(slot, ids[:stop])
            return False
        finally:
            self.free(slot)

    def hold(self, slot: int, length: int) -> Held:
        """See :class:`model.nets.slot_cache.SequenceCache`: full pages are shared, of the last one a part is copied."""
        full = length // self.page
        pages, start = self._tables[slot][:full], full * self.page
        rows = self.export(slot, length, start=start)
        for page in pages:
            self._users[page] += 1
        self._held[id(pages)] = pages
        return Held(length, rows, start, pages)

    def let_go(self, held: Held | None = None) -> None:
        """See :class:`model.nets.slot_cache.SequenceCache`."""
        for pages in list(self._held.values()) if held is None else [held.pages]:
            if self._held.pop(id(pages), None) is not None:
                self._give_back(pages)
                pages.clear()

    def restore(self, slot: int, ids: Sequence[int], held: Held) -> None:
        """See :class:`model.nets.slot_cache.SequenceCache`; known chunks are not written again."""
        if held.pages:
            self.free(slot)
            for page in held.pages:
                self._users[page] += 1
            self._tables[slot], start = list(held.pages), held.start
        else:
            start = self._attach(slot, ids)
        self._take(slot, len(ids))
        where = self._where(slot, start, len(ids))
        for cache, new in zip((self.keys, self.values), held.rows[:, :, :, start - held.start :], strict=True):
            cache.flatten(1, 2).index_copy_(1, where, new.transpose(1, 2).to(cache))
        if held.once:
            self.let_go(held)

    def export(self, slot: int, length: int, *, start: int = 0) -> Tensor:
        """See :class:`model.nets.slot_cache.SequenceCache`."""
        where = self._where(slot, start, length)
        layers, _, _, heads, dim = self.keys.shape
        out = self.keys.new_empty(2, layers, heads, length - start, dim)
        for copy, cache in zip(out, (self.keys, self.values), strict=True):
            for layer in range(layers):  # one at a time: rows of a 7B's trace take gigabytes
                copy[layer] = cache[layer].flatten(0, 1).index_select(0, where).transpose(0, 1)
        return out

    def clear(self, slot: int, start: int = 0) -> None:
        """See :class:`model.nets.slot_cache.SequenceCache`; pages that others use are zeroed when these have ended."""
        for number, page in enumerate(self._tables[slot]):
            if (number + 1) * self.page <= start:
                continue
            if (key := self._key_of.get(page)) is not None:
                self._forget(key)
            if self._users[page] == 1:
                self._zero(page, max(0, start - number * self.page))
            else:
                self._spoiled.add(page)

    def _take(self, slot: int, length: int) -> None:
        if not self.reserve(slot, length):
            raise RuntimeError(f"{length} positions of keys and values find no free pages")

    def _where(self, slot: int, start: int, stop: int) -> Tensor:
        """Places of a slot's positions among all pages' positions."""
        table = torch.tensor(self._tables[slot], dtype=torch.long)
        positions = torch.arange(start, stop)
        return (table[positions // self.page] * self.page + positions % self.page).to(self._device)

    def _zero(self, page: int, start: int = 0) -> None:
        self.keys[:, page, start:] = 0.0
        self.values[:, page, start:] = 0.0

    # ---- passes

    def decode(self, ids: Sequence[int], positions: Sequence[int]) -> Pass:
        """See :class:`model.nets.slot_cache.SequenceCache`."""
        return self.windows(ids, positions, [1] * len(ids))

    def windows(self, ids: Sequence[int], starts: Sequence[int], widths: Sequence[int]) -> Pass:
        """See :class:`model.nets.slot_cache.SequenceCache`."""
        size = next((size for size in self._padded if size >= len(ids)), None)
        if size is not None and (self._free or self._forget_oldest()):
            return self._pad(size, ids, starts, widths)
        return *self._attention.begin(ids, self._tables[: len(starts)], starts, widths), self._attention

    def fixed_passes(self) -> Iterator[Pass]:
        """See :class:`model.nets.slot_cache.SequenceCache`."""
        return (self._pad(size, [], [], []) for size in self._padded)

    def _pad(self, size: int, ids: Sequence[int], starts: Sequence[int], widths: Sequence[int]) -> Pass:
        """A pass of `size` tokens: those that are missing are a row of their own, which writes to a free page."""
        missing, without = size - len(ids), self.num_slots - len(starts)
        page, attention = self._free[-1:], self._padded[size]
        begun = attention.begin(
            [*ids, *[0] * missing],
            [*self._tables[: len(starts)], page * max(1, self._pages(missing)), *[page] * without],
            [*starts, *[0] * (without + 1)],
            [*widths, missing, *[0] * without],
        )
        return *begun, attention

    def settle(self, slot: int, start: int, stop: int) -> None:
        """Nothing: a pass says how many positions it reads."""
