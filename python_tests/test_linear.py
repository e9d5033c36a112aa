import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import StatsCase, assert_close, tensor
from reference import ops as reference

from edlm_engine import ops
from edlm_engine.models import linears as layers
from edlm_engine.models.quantization import concatenate, quantize_weight

# rows, inputs, outputs: partial panels, every height of a tile, several depths, several groups of rows
SHAPES = [(1, 4, 1), (3, 64, 33), (8, 128, 96), (13, 1028, 31), (31, 2052, 65), (70, 4100, 40), (130, 16, 7)]
TOLERANCE = {torch.float32: (1e-5, 2e-5), torch.bfloat16: (2**-8, 2e-4)}


def quantised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q, scale = torch.empty(x.shape, dtype=torch.uint8), torch.empty(len(x))
    ops.quantize_rows(x, q, scale)
    return q, scale


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, dtype, guarded):
    rows, inputs, outputs = shape
    x, weight = tensor((rows, inputs), dtype, 0), tensor((outputs, inputs), dtype, 1, inputs**-0.5)
    out = guarded(rows, outputs, dtype=dtype, fill=torch.nan)
    ops.linear(x, None, ops.pack_weight(weight), out)
    assert_close(out, x.double() @ weight.double().T, *TOLERANCE[dtype])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_is_exact(shape, dtype, guarded):
    """Every instruction set gives the very sums; only the last rounding is in floating point."""
    rows, inputs, outputs = shape
    x, weight = tensor((rows, inputs), dtype, 0), quantize_weight(tensor((outputs, inputs), dtype, 1))
    q = guarded(rows, inputs, dtype=torch.uint8, fill=0)
    q_scale = guarded(rows, dtype=torch.float32, fill=torch.nan)
    ops.quantize_rows(x, q, q_scale)
    want_q, want_scale = reference.quantize_rows(x)
    assert torch.equal(q, want_q)
    assert torch.equal(q_scale, want_scale)
    out = guarded(rows, outputs, dtype=dtype, fill=torch.nan)
    ops.linear(q, q_scale, ops.pack_int8_weight(*weight), out)
    assert torch.equal(out, reference.int8_linear(q, q_scale, *weight).to(dtype))


def test_int8_at_its_largest():
    """All products at their limit: no lane saturates, and the sum still fits."""
    inputs = 65_536
    q = torch.tensor([1, 255], dtype=torch.uint8)[:, None].expand(2, inputs).contiguous()
    values = torch.tensor([-127, 127], dtype=torch.int8)[:, None].expand(2, inputs).contiguous()
    out = torch.empty(2, 2)
    ops.linear(q, torch.ones(2), ops.pack_int8_weight(values, torch.ones(2)), out)
    most = 127 * 127 * inputs
    assert out.tolist() == [[most, -most], [-most, most]]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40), quads=st.integers(1, 70), outputs=st.integers(1, 100), seed=st.integers(0, 10**6)
)
def test_any_shape(rows, quads, outputs, seed):
    x, weight = (
        tensor((rows, 4 * quads), torch.float32, seed),
        tensor((outputs, 4 * quads), torch.float32, seed + 1),
    )
    out = torch.full((rows, outputs), torch.nan)
    ops.linear(x, None, ops.pack_weight(weight), out)
    assert_close(out, x.double() @ weight.double().T, 1e-5, 1e-4)
    q, q_scale = quantised(x)
    int8 = quantize_weight(weight)
    ops.linear(q, q_scale, ops.pack_int8_weight(*int8), out)
    assert torch.equal(out, reference.int8_linear(q, q_scale, *int8))
    # half a step of either factor, and nothing more, is lost
    bound = ((x.abs() + q_scale[:, None] / 2) @ (int8.scale[:, None] / 2).expand(weight.shape).T) + (
        q_scale[:, None] / 2 * weight.abs().sum(1)
    )
    assert bool(((out - x @ weight.T).abs() <= bound * 1.001 + 1e-5).all())


@pytest.mark.parametrize("kind", ["int8", "packed"])
def test_a_row_does_not_depend_on_the_others(kind, dtype):
    x, weight = tensor((37, 2052), dtype, 0), tensor((70, 2052), dtype, 1)
    rows = layers.QuantizedRows(2052)
    layer = layers.make_linear(quantize_weight(weight) if kind == "int8" else weight, rows)
    together = layer(x, torch.empty(37, 70, dtype=dtype))
    for first, last in ((0, 1), (5, 14), (30, 37)):
        alone = layer(x[first:last].contiguous(), torch.empty(last - first, 70, dtype=dtype))
        assert torch.equal(alone, together[first:last])


def test_rows_that_are_zero_or_not_finite():
    x = tensor((5, 64), torch.float32, 0)
    x[0], x[1, 63], x[2, 0], x[3, 31] = 0, torch.nan, torch.inf, -torch.inf
    q, scale = quantised(x)
    assert bool((q[0] == 128).all()) and scale[0] == 0
    assert scale.isnan().tolist() == [False, True, True, True, False]
    out = torch.empty(5, 3)
    ops.linear(q, scale, ops.pack_int8_weight(*quantize_weight(tensor((3, 64), torch.float32, 1))), out)
    assert bool((out[0] == 0).all())
    assert out.isnan().all(1).tolist() == [False, True, True, True, False]


def test_weights_that_are_zero_or_not_finite():
    weight = tensor((4, 16), torch.float32, 0)
    weight[1], weight[2, 3], weight[3, 0] = 0, torch.nan, torch.inf
    values, scale = quantize_weight(weight)
    assert scale.isnan().tolist() == [False, False, True, True]
    assert not values[1].any() and scale[1] == 0
    assert int(values.abs().amax()) == 127


def test_large_matrices_are_quantised_in_pieces():
    weight = tensor((9000, 8), torch.bfloat16, 0)
    values, scale = quantize_weight(weight)
    assert_close(values * scale[:, None], weight.float(), 0, float(scale.max()) / 2)
    halves = concatenate([quantize_weight(half) for half in weight.split(4500)])
    assert torch.equal(halves.values, values)
    assert torch.equal(halves.scale, scale)


@pytest.mark.parametrize("case", ["greedy", "sampled", "filtered"])
def test_int8_head(case, dtype):
    """row_stats_quantized is row_stats of the logits that the quantised factors have."""
    changes = {"greedy": {}, "sampled": {"temperature": 0.8}, "filtered": {"temperature": 1.5, "top_k": 20}}[
        case
    ]
    inputs = StatsCase(35, 128, 3001, forbidden_id=17, **changes).inputs(dtype)
    inputs["slots"][3] = -1
    weight = quantize_weight(inputs["weight"])
    q, q_scale = quantised(inputs["hidden"])
    exact = reference.int8_linear(q, q_scale, *weight)
    want = reference.row_stats(**inputs | {"hidden": torch.eye(35), "weight": exact.T.contiguous()})
    ids, stats = torch.zeros(35, 2, dtype=torch.int32), torch.zeros(35, 5)
    del inputs["hidden"], inputs["weight"]
    ops.row_stats_quantized(
        hidden=q, hidden_scale=q_scale, weight=ops.pack_int8_weight(*weight), vocab=3001, **inputs, ids=ids,
        stats=stats,
    )  # fmt: skip
    assert torch.equal(ids, want[0])
    assert_close(stats, want[1], 1e-4, 1e-5)


def test_which_layer(monkeypatch):
    # The choice is tested on every processor: oneDNN itself packs bfloat16 only where it has kernels for it.
    monkeypatch.setattr(layers, "OneDnnLinear", lambda weight: "oneDNN")
    rows, weight = layers.QuantizedRows(64), tensor((48, 64), torch.bfloat16, 0)
    monkeypatch.setattr(layers, "has_amx", lambda: False)
    assert isinstance(layers.make_linear(weight, rows), layers.PackedLinear)
    assert isinstance(layers.make_linear(quantize_weight(weight), rows), layers.QuantizedLinear)
    monkeypatch.setattr(layers, "has_amx", lambda: True)
    assert layers.make_linear(weight, rows) == "oneDNN"
    assert isinstance(layers.make_linear(weight.float(), rows), layers.PackedLinear)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN packs no bfloat16 on this processor"
)
def test_onednn_layer():
    weight = tensor((48, 64), torch.bfloat16, 0)
    packed, onednn = layers.PackedLinear(weight), layers.OneDnnLinear(weight)
    x = tensor((5, 64), torch.bfloat16, 1)
    out, other = torch.empty(5, 48, dtype=torch.bfloat16), torch.empty(5, 48, dtype=torch.bfloat16)
    assert_close(packed(x, out), onednn(x, other), 2**-7, 1e-3)


def test_bad_arguments():
    x, out = torch.zeros(2, 8), torch.zeros(2, 5)
    weight = ops.pack_weight(torch.zeros(5, 8))
    with pytest.raises(ValueError, match=r"edlm::linear: weight: want .*\[1, 8, 32\].* got Int \[1, 4, 32\]"):
        ops.linear(x, None, ops.pack_weight(torch.zeros(5, 4)), out)
    with pytest.raises(ValueError, match=r"edlm::linear: x: want .*Byte"):
        ops.linear(x, torch.ones(2), weight, out)
    with pytest.raises(ValueError, match="edlm::linear: x: want a multiple of 2 columns, got 7"):
        ops.linear(torch.zeros(2, 7).bfloat16(), None, weight, out.bfloat16())
    with pytest.raises(ValueError, match="x: want a multiple of 4, up to 66000, as columns, got 66004"):
        ops.linear(torch.zeros(2, 66004, dtype=torch.uint8), torch.ones(2), weight, out)
    with pytest.raises(ValueError, match="edlm::quantize_rows: q: want"):
        ops.quantize_rows(x, torch.zeros(2, 7, dtype=torch.uint8), torch.zeros(2))
    with pytest.raises(ValueError, match="multiple of 4 bytes along its inputs, got 3 inputs"):
        ops.pack_weight(torch.zeros(5, 3).bfloat16())
    with pytest.raises(ValueError, match=r"one-byte elements has at most 66000 inputs, .* got 66004"):
        ops.pack_int8_weight(torch.zeros(1, 66004, dtype=torch.int8), torch.ones(1))
    with pytest.raises(ValueError, match="edlm::quantize_rows: q: float8 runs on a GPU only"):
        ops.quantize_rows(x, torch.zeros(2, 8).to(torch.float8_e4m3fn), torch.zeros(2))
    with pytest.raises(ValueError, match="edlm::linear: x: float8 runs on a GPU only"):
        ops.linear(x.to(torch.float8_e4m3fn), torch.ones(2), weight, out)
    with pytest.raises(ValueError, match="a float8 weight is packed for a GPU only"):
        ops.pack_fp8_weight(x.to(torch.float8_e4m3fn), torch.ones(2))


def test_a_quantised_layer_takes_what_was_quantised_for_it():
    """An op before it has filled the buffers; the layer's own x is then of no use."""
    weight, rows = quantize_weight(tensor((48, 64), torch.float32, 0)), layers.QuantizedRows(64)
    layer = layers.make_linear(weight, rows)
    x = tensor((5, 64), torch.float32, 1)
    want = layer(x, torch.empty(5, 48)).clone()
    buffers = layer.quantized_input(5)
    assert buffers[0].shape == (5, 64) and buffers[1].shape == (5,)
    ops.quantize_rows(x, *buffers)
    out = torch.empty(5, 48)
    assert layer(torch.full((5, 64), torch.nan), out, buffers) is out
    assert torch.equal(out, want)


@pytest.mark.parametrize("kind", (layers.DenseLinear, layers.PackedLinear))
def test_other_layers_want_nothing_quantised(kind):
    weight, x = tensor((48, 64), torch.float32, 0), tensor((5, 64), torch.float32, 1)
    layer, out = kind(weight), torch.empty(5, 48)
    assert layer.quantized_input(5) is layers.NOTHING == (None, None)
    assert layer(x, out) is out
    assert_close(out, x.double() @ weight.double().T, 1e-5, 2e-5)


def test_a_dense_layer_multiplies_with_the_products_that_were_found():
    class Products:
        def multiply(self, x, weight, out):
            return "found", x, weight, out

    weight, x, out = torch.ones(3, 4), torch.ones(2, 4), torch.empty(2, 3)
    found, *arguments = layers.DenseLinear(weight, Products())(x, out)
    assert (
        found == "found" and [a is b for a, b in zip(arguments, (x, weight, out), strict=True)] == [True] * 3
    )


@pytest.mark.parametrize("on_gpu", (False, True))
def test_buffers_of_rows(on_gpu, monkeypatch):
    """They grow by powers of two. On a GPU the old ones stay: captured graphs go on using them."""
    monkeypatch.setattr(layers.packing, "on_gpu", lambda device: on_gpu)
    rows = layers.QuantizedRows(8, rows=3)
    q, scale = rows.buffers(2, 6)
    assert q.shape == (2, 6) and scale.shape == (2,) and q.dtype == torch.uint8
    assert rows.buffers(3, 8)[0].data_ptr() == q.data_ptr()
    old = [weakref.ref(q._base), weakref.ref(scale._base)]
    for count in (5, 8):
        grown = rows.buffers(count, 8)[0]
        assert grown.shape == (count, 8) and grown._base.numel() == 64
    for count, capacity in ((1, 1), (8, 8), (9, 16)):
        assert layers.QuantizedRows(8).buffers(count, 8)[0]._base.numel() == 8 * capacity
    del q, scale
    assert [ref() is not None for ref in old] == [on_gpu] * 2
    assert len(rows._outgrown) == on_gpu


@pytest.mark.parametrize(("rows", "unpacks"), [(layers.MANY_ROWS - 1, False), (layers.MANY_ROWS, True)])
def test_many_rows_on_a_gpu_are_multiplied_unpacked(rows, unpacks, monkeypatch):
    weight, x = tensor((48, 64), torch.float32, 0), tensor((rows, 64), torch.float32, 1)
    layer, calls = layers.PackedLinear(weight), []
    monkeypatch.setattr(layers.ops, "unpack_weight", lambda *a: (calls.append(a[1:]), weight)[1])
    monkeypatch.setattr(layer, "_on_gpu", True)
    out = torch.empty(rows, 48)
    assert layer(x, out) is out
    assert calls == [(48, 64, torch.float32)] * unpacks
    assert_close(out, x.double() @ weight.double().T, 1e-5, 2e-5)


@pytest.mark.parametrize("ours_wins", (True, False))
def test_a_gpu_measures_each_shape_once(ours_wins, monkeypatch):
    timed = []

    def time_on_gpu(layer, weight):
        timed.append(type(layer))
        return [1.0 if (type(layer) is layers.PackedLinear) == ours_wins else 2.0]

    monkeypatch.setattr(layers, "time_on_gpu", time_on_gpu)
    choices, weight = layers.GpuChoices(), tensor((48, 64), torch.bfloat16, 0)
    for _ in range(2):
        layer = layers._fastest_on_gpu(weight, choices)
        assert type(layer) is (layers.PackedLinear if ours_wins else layers.DenseLinear)
    assert timed == [layers.PackedLinear, layers.DenseLinear]
    assert choices.packed_won == {(48, 64, torch.bfloat16): ours_wins}
    assert type(layers._fastest_on_gpu(weight.float(), choices)) is layers.DenseLinear and len(timed) == 2


def test_which_layer_elsewhere():
    weight = torch.empty(48, 64, device="meta")
    assert type(layers.make_linear(weight, layers.QuantizedRows(64))) is layers.DenseLinear
