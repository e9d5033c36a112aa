"""Pages and slots: no page has two owners, none gets lost."""

import pytest
import torch
from checkpoints import config_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm_engine.models.families import read_config
from edlm_engine.steps.kv_cache import PAGE_LENGTH, PagedKVCache, pages_for

CONFIG = read_config(config_dict(num_hidden_layers=1), "config.json")[0]


def new_cache(tokens: int, slots: int) -> PagedKVCache:
    return PagedKVCache(CONFIG, tokens, slots, torch.float32)


def assert_sound(cache: PagedKVCache, live: dict[int, int]):
    """`live`: positions per reserved slot."""
    owned = []
    for slot, positions in live.items():
        count = pages_for(positions)
        pages = cache.page_table[slot].tolist()
        assert pages[count:] == [-1] * (len(pages) - count)
        owned += pages[:count]
    assert len(set(owned)) == len(owned) and all(0 <= page < cache.num_pages for page in owned)
    assert cache.free_tokens == (cache.num_pages - len(owned)) * PAGE_LENGTH


@given(
    st.integers(1, 1200),
    st.integers(1, 5),
    st.lists(st.tuples(st.booleans(), st.integers(1, 512)), max_size=40),
)
@settings(max_examples=80, deadline=None)
def test_any_order_of_reservations_and_releases(tokens, slots, events):
    cache, live = new_cache(tokens, slots), {}
    for release, number in events:
        if release and live:
            slot = sorted(live)[number % len(live)]
            cache.release(slot)
            del live[slot]
        elif not release:
            room = len(live) < slots and pages_for(number) * PAGE_LENGTH <= cache.free_tokens
            slot = cache.reserve(number)
            assert (slot is not None) == room
            if room:
                assert slot not in live
                live[slot] = number
        assert_sound(cache, live)
    for slot in live:
        cache.release(slot)
    assert_sound(cache, {})


def test_the_table_keeps_the_pages_of_who_left_until_the_slot_is_taken_again():
    cache = new_cache(4 * PAGE_LENGTH, 1)
    slot = cache.reserve(3 * PAGE_LENGTH)
    pages = cache.page_table[slot].tolist()
    cache.release(slot)
    assert cache.page_table[slot].tolist() == pages
    assert cache.reserve(PAGE_LENGTH) == slot
    assert cache.page_table[slot, 1:].tolist() == [-1] * (len(pages) - 1)


def test_a_refused_reservation_takes_nothing():
    cache = new_cache(2 * PAGE_LENGTH, 4)
    assert cache.reserve(2 * PAGE_LENGTH + 1) is None
    assert cache.reserve(2 * PAGE_LENGTH) is not None


@pytest.mark.parametrize("tokens", (1, PAGE_LENGTH, PAGE_LENGTH + 1))
def test_sizes(tokens):
    cache = new_cache(tokens, 2)
    assert cache.num_pages == pages_for(tokens) == -(-tokens // PAGE_LENGTH)
    assert cache.keys[0].shape == cache.values[0].shape == (cache.num_pages, 2, PAGE_LENGTH, 16)
    assert cache.bytes_per_token() == 2 * 2 * 16 * 4


@pytest.mark.parametrize(("tokens", "width"), [(3 * PAGE_LENGTH, 3), (100 * PAGE_LENGTH, 512 // PAGE_LENGTH)])
def test_a_table_is_as_wide_as_the_longest_sequence(tokens, width):
    """Which the model's positions bound, and the pages there are."""
    assert new_cache(tokens, 5).page_table.tolist() == [[-1] * width] * 5


def test_every_slot_and_every_page_can_be_had():
    cache = new_cache(8 * PAGE_LENGTH, 5)
    assert sorted(cache.reserve(1) for _ in range(5)) == [0, 1, 2, 3, 4] and cache.reserve(1) is None
    for slot in range(5):
        cache.release(slot)
    slot = cache.reserve(8 * PAGE_LENGTH)
    assert sorted(cache.page_table[slot].tolist()) == list(range(8)) and cache.free_tokens == 0


def test_bytes_of_a_position():
    """Keys and values of every layer and head."""
    config = read_config(config_dict(num_hidden_layers=3, num_key_value_heads=1), "config.json")[0]
    cache = PagedKVCache(config, 100, 1, torch.bfloat16)
    assert cache.bytes_per_token() == 2 * 3 * 1 * 16 * 2 and cache.keys[2].dtype == torch.bfloat16
    assert len(cache.keys) == len(cache.values) == 3
