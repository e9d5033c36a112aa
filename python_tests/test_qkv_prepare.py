import pytest
import torch
from op_cases import QKV_CASES, assert_close, ints
from reference import ops as reference

from edlm_engine import ops

# fp32: sums of up to 256 terms in another order; bf16: an ulp where the rounding of either side falls apart.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2**-7, 1e-5)}
CACHE_24 = torch.zeros(5, 3, 24, 16)
CASES = pytest.mark.parametrize("case", QKV_CASES.values(), ids=QKV_CASES)


@CASES
def test_matches_reference(case, dtype, guarded):
    inputs = case.inputs(dtype)
    want_q, want_k, want_v = reference.qkv_prepare(**inputs, heads=case.heads, eps=1e-6)
    for name in ("k_cache", "v_cache"):
        inputs[name] = guarded(*inputs[name].shape, dtype=dtype, fill=torch.nan)
    q = guarded(len(want_q), case.heads, case.cache.head_dim, dtype=dtype, fill=torch.nan)
    ops.qkv_prepare(**inputs, q=q, eps=1e-6)
    padding = inputs["slots"] < 0
    assert bool(q[padding].isnan().all()), "padding rows were written"
    assert_close(q[~padding], want_q[~padding], *TOLERANCE[dtype])
    # Both caches were NaN all over, so this also says that nothing but the rows' own places was written.
    assert_close(inputs["k_cache"], want_k, *TOLERANCE[dtype])
    assert_close(inputs["v_cache"], want_v, *TOLERANCE[dtype])


def test_overwrites_what_a_noisy_step_left(dtype):
    case = QKV_CASES["qwen3"]
    first, second = case.inputs(dtype), case.inputs(dtype, seed=0)
    second["qkv"] = second["qkv"].flip(0).contiguous()
    q = torch.empty(len(first["slots"]), case.heads, case.cache.head_dim, dtype=dtype)
    ops.qkv_prepare(**second, q=q, eps=1e-6)
    again = first | {"k_cache": second["k_cache"].clone(), "v_cache": second["v_cache"].clone()}
    for inputs in (first, again):
        ops.qkv_prepare(**inputs, q=q, eps=1e-6)
    assert torch.equal(first["k_cache"].nan_to_num(), again["k_cache"].nan_to_num())
    assert torch.equal(first["v_cache"].nan_to_num(), again["v_cache"].nan_to_num())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": ints([5] * 18)}, r"slots\[0\]: want -1 or a row of page_table \(1\), got 5"),
        ({"positions": ints([99] * 18)}, r"positions\[1\]: want less than the 17 rows of cos_sin, got 99"),
        ({"page_table": ints([[0, 77, 0]])}, r"page_table\[0, 1\]: want a page of the cache \(5\), got 77"),
        ({"page_table": ints([[0]])}, r"positions\[16\]: 16 lies beyond the 1 pages of a slot"),
        (
            {"qkv": torch.zeros(18, 80)},
            r"qkv: want contiguous Float \[18, 144\] on cpu, got Float \[18, 80\]",
        ),
        ({"bias": torch.zeros(9)}, r"bias: want .*\[144\].*got Float \[9\]"),
        (
            {"k_cache": CACHE_24, "v_cache": CACHE_24},
            "k_cache: want a page size that is a power of two .* got 24",
        ),
        ({"q": torch.zeros(18, 3, 24)}, "q: want a head size that is a multiple of 16, up to 1024, got 24"),
    ],
)
def test_bad_arguments(change, message):
    inputs = QKV_CASES["plain"].inputs(torch.float32) | {"q": torch.zeros(18, 3, 16)}
    with pytest.raises(ValueError, match=f"edlm::qkv_prepare: {message}"):
        ops.qkv_prepare(**inputs | change, eps=1e-6)
