import pytest
import torch
from op_cases import ATTENTION_CASES, AttentionCase, Cache, assert_close, ints
from reference import ops as reference

from edlm_engine import ops

# fp32: other orders of sums. bf16: the softmax weights and the result are rounded, the inputs are the same.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2**-7, 2**-8)}


def run(case: AttentionCase, inputs: dict, out: torch.Tensor) -> torch.Tensor:
    ops.block_attention(**inputs, scale=case.scale, out=out)
    return out


def check(case: AttentionCase, dtype: torch.dtype, guarded) -> None:
    inputs = case.inputs(dtype)
    out = guarded(case.rows, case.heads, case.cache.head_dim, dtype=dtype, fill=9)
    run(case, inputs, out)
    assert bool((out[0] == 9).all()), "a row of no block was written"
    want = reference.block_attention(**inputs, scale=case.scale)
    assert_close(out[1:], want[1:], *TOLERANCE[dtype])


@pytest.mark.parametrize("case", ATTENTION_CASES.values(), ids=ATTENTION_CASES)
def test_matches_reference(case, dtype, guarded):
    """NaN lies in the cache wherever nothing was written, and unused entries of the page table are absurd."""
    check(case, dtype, guarded)


@pytest.mark.parametrize("kv_len", [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("length", [1, 5, 13])
@pytest.mark.parametrize("causal", [0, 1])
def test_edges_of_tiles(kv_len, length, causal, dtype, guarded):
    length = min(length, kv_len)
    check(AttentionCase(6, Cache(2, 32, 16, (kv_len,)), ((0, length, kv_len, causal),)), dtype, guarded)


@pytest.mark.parametrize("head_dim", range(16, 145, 16))
def test_head_sizes(head_dim, dtype, guarded):
    check(AttentionCase(4, Cache(2, head_dim, 32, (83,)), ((0, 11, 83, 0),)), dtype, guarded)


def test_sees_less_than_was_written(dtype):
    """Stale keys beyond kv_len, finite or not, change no bit."""
    case = AttentionCase(4, Cache(2, 64, 64, (100,)), ((0, 8, 70, 0),))
    inputs = case.inputs(dtype)
    page = int(inputs["page_table"][0, 1])
    out = [run(case, inputs, torch.zeros(case.rows, 4, 64, dtype=dtype))]
    for poison in (torch.nan, torch.inf, 1e30):
        inputs["k_cache"][page, :, 70 - 64 :] = poison
        inputs["v_cache"][page, :, 70 - 64 :] = poison
        out.append(run(case, inputs, torch.zeros_like(out[0])))
    assert all(torch.equal(out[0], other) for other in out[1:])


def test_large_scores(dtype):
    """Scores of thousands neither overflow nor vanish: the softmax becomes a choice of the best key."""
    case = AttentionCase(2, Cache(1, 16, 16, (50,)), ((0, 3, 50, 0),))
    inputs = case.inputs(dtype)
    inputs["q"] *= 1000
    out = run(case, inputs, torch.zeros(case.rows, 2, 16, dtype=dtype))
    assert_close(out, reference.block_attention(**inputs, scale=case.scale), 2**-5, 2**-5)


def test_a_block_does_not_depend_on_the_batch(dtype):
    case = ATTENTION_CASES["fused"]
    inputs = case.inputs(dtype)
    together = run(case, inputs, torch.zeros(case.rows, case.heads, 64, dtype=dtype))
    for block in inputs["query_blocks"][1:]:
        alone = run(case, inputs | {"query_blocks": block[None]}, torch.zeros_like(together))
        rows = slice(int(block[5]), int(block[5] + block[2]))
        assert torch.equal(alone[rows], together[rows])


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ([3, 0, 1, 1, 0, 0], r"query_blocks\[0\]: slot: want -1 or a row of page_table \(1\), got 3"),
        ([0, 0, 0, 1, 0, 0], r"query_blocks\[0\]: want rows within the 2 of q, got row 0, length 0"),
        ([0, 0, 2, 1, 0, 1], r"query_blocks\[0\]: want rows within the 2 of q, got row 1, length 2"),
        ([0, 0, 1, 1, 0, 2**31 - 1], r"query_blocks\[0\]: want rows within the 2 of q, got row 2147483647"),
        ([0, 0, 2**31 - 1, 1, 0, 1], r"query_blocks\[0\]: want rows within the 2 of q, .* length 2147483647"),
        ([0, 0, 2, 1, 1, 0], r"query_blocks\[0\]: kv_len: want 2 to 48, got 1"),
        ([0, 0, 2, 49, 0, 0], r"query_blocks\[0\]: kv_len: want 1 to 48, got 49"),
        ([0, 0, 2, 17, 0, 0], r"page_table\[0, 1\]: want a page of the cache \(4\), got 2147483647"),
    ],
)
def test_bad_blocks(block, message):
    case = AttentionCase(4, Cache(2, 64, 16, (1,)), ((0, 1, 1, 0),))
    inputs = case.inputs(torch.float32) | {"query_blocks": ints([block])}
    with pytest.raises(ValueError, match=f"edlm::block_attention: {message}"):
        run(case, inputs, torch.zeros(2, 4, 64))


def test_blocks_of_more_rows_than_there_are():
    case = AttentionCase(4, Cache(2, 64, 16, (1,)), ((0, 1, 1, 0),))
    inputs = case.inputs(torch.float32) | {"query_blocks": ints([[0, 0, 2, 1, 0, 0], [0, 0, 1, 1, 0, 1]])}
    with pytest.raises(ValueError, match="query_blocks: want at most the 2 rows of q in all, got 3"):
        run(case, inputs, torch.zeros(2, 4, 64))


@pytest.mark.parametrize("name", ["query_blocks", "page_table"])
def test_the_output_lies_apart(name):
    """What says where to read and write must not change meanwhile."""
    case = AttentionCase(4, Cache(2, 64, 16, (1,)), ((0, 1, 1, 0),))
    inputs, out = case.inputs(torch.float32), torch.zeros(2, 4, 64)
    inputs[name] = (
        out.view(-1).view(torch.int32)[: inputs[name].numel()].view_as(inputs[name]).copy_(inputs[name])
    )
    with pytest.raises(ValueError, match=f"out: want memory apart from {name}"):
        run(case, inputs, out)


def test_many_tiles_are_not_divided_by_keys():
    """Their partial results would take more memory than all else; a few rows' results stay what they were."""
    case = AttentionCase(64, Cache(64, 16, 64, (2100,)), ((0, 257, 2100, 0),))
    inputs = case.inputs(torch.float32)
    out = run(case, inputs, torch.zeros(case.rows, 64, 16))
    few = inputs | {"query_blocks": ints([[0, 0, 3, 2100, 0, 1]])}
    assert_close(run(case, few, torch.zeros_like(out))[1:4], out[1:4], *TOLERANCE[torch.float32])


def test_bad_heads():
    case = ATTENTION_CASES["one_row"]
    inputs = case.inputs(torch.float32) | {"q": torch.zeros(2, 3, 64)}
    with pytest.raises(ValueError, match="q: want a multiple of the 2 heads of k_cache, got 3"):
        run(case, inputs, torch.zeros(2, 3, 64))
