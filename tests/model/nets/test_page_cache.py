"""Pages of keys and values: none is lost, shared by mistake, or read before it is written."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from model.config import TransformerConfig
from model.nets.attention import Attention
from model.nets.page_cache import PageCache
from model.nets.paged_attention import PagedAttention, has_kernel
from model.nets.slot_cache import Held
from model.paging import CHUNK

PAGE = 4
CONFIG = TransformerConfig(
    vocab_size=32,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    intermediate_size=16,
    max_position_embeddings=64,
)


def new(num_pages: int = 24, num_slots: int = 5) -> PageCache:
    return PageCache(CONFIG, num_slots, 64, num_pages=num_pages, page=PAGE)


def row_of(token: int, position: int) -> Tensor:
    """The key of a token at a position, [J, K]; its value is the negative."""
    return torch.full((2, 4), float(1 + token + 100 * position))


@dataclass
class Prefill:
    """Writes the rows above; `ids` are those that it had to compute."""

    ids: list[int] = field(default_factory=list)

    def __call__(self, ids: Tensor, positions: Tensor, attention: Attention) -> None:
        self.ids += ids.tolist()
        keys = torch.stack([row_of(*pair) for pair in zip(ids.tolist(), positions.tolist(), strict=True)])
        for layer in range(2):
            attention(layer, torch.zeros(len(ids), 4, 4), keys + layer, -keys - layer)


def assert_holds(cache: PageCache, slot: int, ids: list[int]) -> None:
    keys, values = cache.export(slot, len(ids))
    if not ids:
        return
    expected = torch.stack([row_of(token, position) for position, token in enumerate(ids)]).transpose(0, 1)
    for layer in range(2):
        assert torch.equal(keys[layer], expected + layer)
        assert torch.equal(values[layer], -expected - layer)


def assert_counts(cache: PageCache) -> None:
    """Each page is free, of a known chunk, or of as many sequences as its count says."""
    used = Counter(page for pages in (*cache._tables, *cache._held.values()) for page in pages)
    known = {page for pages in cache._known.values() for page in pages}
    assert [used[page] for page in range(len(cache._users))] == cache._users
    assert sorted([*cache._free, *(used.keys() | known)]) == list(range(len(cache._users)))
    assert {key for key, pages in cache._known.items() if not any(used[p] for p in pages)} == set(cache._idle)
    assert not (known | set(used)) & set(cache._free)


@pytest.mark.parametrize("seed", range(20))
def test_random_use_loses_and_mixes_no_page(seed: int) -> None:
    rng = random.Random(seed)
    cache, texts = new(), dict[int, list[int]]()  # of the slots 0 ... n-1
    held = list[tuple[list[int], Held]]()
    heads = [[rng.randrange(32) for _ in range(20)] for _ in range(2)]
    for _ in range(200):
        action = rng.random()
        if action < 0.4 and len(texts) < cache.num_slots:
            ids = rng.choice(heads)[: rng.randrange(21)] + [rng.randrange(32) for _ in range(rng.randrange(12))]
            if cache.has_room([len(ids)]):
                slot = len(texts)
                if rng.random() < 0.7 or not ids:
                    cache.prefill(slot, ids, Prefill())
                else:
                    rows = torch.stack([row_of(token, position) for position, token in enumerate(ids)]).transpose(0, 1)
                    keys = torch.stack([rows, rows + 1])
                    cache.restore(slot, ids, Held(len(ids), torch.stack([keys, -keys])))
                texts[slot] = ids
        elif action < 0.5 and texts:  # another sequence starts from what one has so far
            slot = rng.choice(list(texts))
            length = rng.randrange(len(texts[slot]) + 1)
            held.append((texts[slot][:length], cache.hold(slot, length)))
        elif action < 0.6 and held:
            ids, one = held.pop(rng.randrange(len(held)))
            used_once = rng.random() < 0.5
            if len(texts) < cache.num_slots and one.is_whole and cache.has_room([len(ids) - one.start]):
                cache.restore(len(texts), ids, replace(one, once=used_once))
                texts[len(texts)] = ids
            cache.let_go(one)
        elif action < 0.62:
            cache.let_go()
        elif action < 0.64:
            cache.forget()
        elif action < 0.75 and texts:
            slot = rng.choice(list(texts))
            length = len(texts[slot]) + rng.randrange(1, 9)
            if cache.reserve(slot, length):
                assert len(cache._tables[slot]) * PAGE >= length
        elif texts:
            slot, last = rng.choice(list(texts)), len(texts) - 1
            if slot == last:
                cache.free(slot)
            else:
                cache.move(last, slot, len(texts[last]))
                texts[slot] = texts[last]
            del texts[last]
        assert_counts(cache)
        for slot, ids in texts.items():
            assert_holds(cache, slot, ids)
    for slot in texts:
        cache.free(slot)
    cache.let_go()
    assert cache.num_free == 24


def test_held_rows_outlive_their_sequence_and_are_given_back_once() -> None:
    cache, ids = new(), list(range(11))
    cache.prefill(0, ids, Prefill())
    held = cache.hold(0, 10)
    assert (held.length, held.start, held.rows.shape[-2], cache.num_free) == (10, 8, 2, 24 - 3)
    cache.free(0)
    assert cache.num_free == 24 - 2, "what is not held is free"
    rest = Prefill()
    cache.prefill(0, [30, 31], rest)
    for slot, tail in ((1, 20), (2, 21)):
        rows = torch.stack([row_of(tail, 10)]).transpose(0, 1)
        keys = torch.stack([rows, rows + 1])
        more = held.followed_by(torch.stack([keys, -keys]))
        cache.restore(slot, [*ids[:10], tail], more if slot == 2 else replace(more, once=False))
    for slot, tail in ((1, 20), (2, 21)):
        assert_holds(cache, slot, [*ids[:10], tail])
    assert not held.is_whole, "the second use was the last"
    cache.let_go(held)
    for slot in range(3):
        cache.free(slot)
    assert cache.num_free == 24


def test_half_a_chunk_may_be_held_and_forgotten() -> None:
    cache = new()
    cache.prefill(0, list(range(9)), Prefill())
    held = cache.hold(0, 5)
    cache.free(0)
    cache.forget()
    assert_counts(cache)
    cache.let_go(held)
    assert len(cache._free) == 24


def test_reset_ends_what_is_held() -> None:
    cache = new()
    cache.prefill(0, list(range(9)), Prefill())
    held = cache.hold(0, 9)
    cache.reset()
    assert not held.is_whole
    cache.let_go(held)
    assert cache.num_free == 24


def test_known_beginning_is_not_computed_again() -> None:
    cache, ids = new(), list(range(20))
    whole, again = Prefill(), Prefill()
    cache.prefill(0, ids, whole)
    cache.prefill(1, [*ids[:18], 30, 31], again)
    assert whole.ids == ids
    assert again.ids == [16, 17, 30, 31], "two chunks of two pages are known"
    assert cache._tables[0][:4] == cache._tables[1][:4]
    assert cache.num_free == 24 - 6
    cache.free(0)
    assert_holds(cache, 1, [*ids[:18], 30, 31])
    cache.free(1)
    later = Prefill()
    cache.prefill(0, ids, later)
    assert later.ids == ids[16:], "also when nobody uses it any more"
    other = Prefill()
    cache.prefill(1, [9, *ids[1:]], other)
    assert other.ids == [9, *ids[1:]], "a chunk is known by all tokens before it"


def test_chunks_without_users_make_room_the_oldest_first() -> None:
    cache = new(num_pages=16)
    texts = [[k] * CHUNK * PAGE for k in range(8)]  # a chunk each
    for ids in texts:
        cache.prefill(0, ids, Prefill())
        cache.free(0)
    assert cache.num_free == 16
    cache.prefill(0, texts[0], Prefill())  # used again
    cache.free(0)
    cache.prefill(1, list(range(12)), Prefill())  # three pages: two chunks have to go
    for k, known in ((0, True), (3, True), (1, False), (2, False)):
        cache.free(0)
        prefill = Prefill()
        cache.prefill(0, texts[k], prefill)
        assert (prefill.ids == []) == known, k


def test_beginning_of_a_text_stays_known_longest() -> None:
    cache, ids = new(num_pages=16), list(range(32)) + list(range(16))  # six chunks in twelve pages
    cache.prefill(0, ids, Prefill())
    cache.free(0)
    cache.prefill(1, [9] * 20, Prefill())  # five pages: four are free
    cache.free(1)
    prefill = Prefill()
    cache.prefill(0, ids, prefill)
    assert prefill.ids == ids[40:], "the last chunk only"
    assert_counts(cache)


def test_chunks_that_a_missing_one_cut_off_are_replaced() -> None:
    cache, ids = new(), list(range(32))
    cache.prefill(0, ids, Prefill())
    cache.free(0)
    first = next(iter(cache._known))
    cache._forget(first)
    again, third = Prefill(), Prefill()
    cache.prefill(0, ids, again)
    assert again.ids == ids
    assert_counts(cache)
    cache.free(0)
    cache.prefill(0, ids, third)
    assert third.ids == []
    cache.free(0)
    assert cache.num_free == 24


def test_nan_reaches_no_later_sequence() -> None:
    cache, ids = new(), list(range(16))
    cache.prefill(0, ids, Prefill())
    cache.prefill(1, ids, Prefill())
    pages = list(cache._tables[0])
    cache.keys[:, pages] = float("nan")
    cache.clear(0)
    cache.free(0)
    assert_counts(cache)
    prefill = Prefill()
    cache.prefill(0, ids, prefill)
    assert prefill.ids == ids, "the spoiled chunks are no longer known"
    cache.clear(1)
    cache.free(1)
    assert not cache.keys.isnan().any()
    assert_holds(cache, 0, ids)


def test_clearing_from_a_position_on_keeps_what_is_before() -> None:
    cache, ids = new(), list(range(7))
    cache.prefill(0, ids, Prefill())
    cache.reserve(0, 12)
    cache.keys[:, cache._tables[0][1], 3] = float("nan")
    cache.clear(0, 7)
    assert_holds(cache, 0, ids)
    assert not cache.keys.isnan().any()


def test_pages_must_hold_a_context() -> None:
    with pytest.raises(ValueError, match="15 pages of 4 positions do not hold a context of 64"):
        new(num_pages=15)
    assert not new(num_pages=16).has_room([65])


def test_new_sequences_leave_a_page_for_each_running_one() -> None:
    cache = new(num_pages=16)
    for slot in range(3):
        cache.prefill(slot, [slot] * 16, Prefill())
    assert cache.has_room([4])
    assert not cache.has_room([8])
    assert not cache.has_room([4, 4])


def test_no_kernel_on_a_cpu() -> None:
    assert not has_kernel(torch.device("cpu"), torch.bfloat16, 128, 1)
    assert not has_kernel(torch.device("cuda"), torch.float32, 128, 1)


def test_pass_with_the_kernel_depends_on_no_data() -> None:
    """On a device that does not exist: a pass that read a number back would fail there."""
    with FakeTensorMode():
        caches = torch.zeros(2, 1, 4, 256, 2, 128, device="cuda", dtype=torch.bfloat16)
        attention = PagedAttention(*caches, groups=2, kernel=True)
        _, positions = attention.begin([0] * 4, [[2, 0], [3]], [300, 7], [1, 3])
        q, k, v = (torch.zeros(4, heads, 128, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2))
        found = attention(0, q, k, v)
    assert (positions.shape, positions.device.type) == ((4,), "cuda")
    assert (found.shape, found.device.type, found.dtype) == ((4, 512), "cuda", torch.bfloat16)
