"""Query blocks of prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edlm_engine.steps.inputs import QueryBlock
from edlm_engine.steps.prompts import prompt_blocks


def visible(block: QueryBlock) -> dict[int, int]:
    """Position of each row -> number of keys it sees."""
    last = block.start + block.length - 1
    return {
        position: block.kv_len - (last - position if block.causal else 0)
        for position in range(block.start, last + 1)
    }


def expected_keys(position: int, length: int, prefill: str, block_length: int) -> int:
    return {
        "causal": position + 1,
        "bidirectional": length,
        "block_causal": min((position // block_length + 1) * block_length, length),
    }[prefill]


@given(
    st.integers(1, 200), st.sampled_from(["causal", "block_causal", "bidirectional"]), st.integers(1, 40),
    st.integers(0, 300), st.booleans(), st.data(),
)  # fmt: skip
def test_prompt_blocks(length, prefill, block_length, most, shift, data):
    """However many rows a forward may have, every row is laid out once, in order, and sees what it must. With
    token shift the last position of the prompt is left to the first denoising step."""
    most = max(most, block_length if prefill != "bidirectional" else length)
    cached, seen, rows = 0, {}, length - shift
    while cached < rows:
        now = data.draw(st.integers(0, most)) if len(seen) % 3 else most  # other prompts took the rest
        blocks = prompt_blocks(7, cached, length, prefill, block_length, now, rows)
        assert sum(block.length for block in blocks) <= now
        for block in blocks:
            assert block.slot == 7 and block.start == cached and block.length > 0
            # Keys must have been written, by an earlier forward or by this one; the position that is left
            # to the first denoising step is written with the last rows of the prompt.
            end = blocks[-1].start + blocks[-1].length
            assert block.kv_len <= (length if end == rows else end)
            seen |= visible(block)
            cached = block.start + block.length
        if now == most:
            assert blocks, "a forward with all the room must make progress"
    assert cached == rows
    assert seen == {i: expected_keys(i, length, prefill, block_length) for i in range(rows)}


@given(st.integers(1, 300), st.integers(1, 40))
def test_block_causal_fills_a_forward(length, block_length):
    blocks = prompt_blocks(0, 0, length, "block_causal", block_length, 128, length)
    rows = sum(block.length for block in blocks)
    assert rows == length if length <= 128 else rows > 128 - block_length


@pytest.mark.parametrize("prefill", ("causal", "block_causal", "bidirectional"))
@pytest.mark.parametrize("most", (0, -30))
def test_no_rows_left(prefill, most):
    assert prompt_blocks(0, 0, 5, prefill, 4, most, 5) == []
