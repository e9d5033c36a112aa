"""quantize_rows and linear: the CUDA kernels under host_sim against the reference."""

import pytest
import torch
from host_sim import DTYPES, HostSim, SimulatorError, close, poisoned
from op_cases import tensor
from reference import ops as reference

from edlm_engine import ops, packing
from edlm_engine.models.quantization import quantize_weight

CODES = DTYPES | {torch.uint8: 3, torch.float8_e4m3fn: 4}
GUARD = 64


def name_of(value) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


@pytest.fixture(scope="module")
def plain() -> HostSim:
    return HostSim("plain")


@pytest.fixture(scope="module", params=["plain", "sanitized"])
def simulator(request) -> HostSim:
    return HostSim(request.param)


def quantise(simulator, x: torch.Tensor, q_dtype: torch.dtype, seed=0):
    q = torch.full(x.shape, 77, dtype=torch.uint8).view(q_dtype)
    scale = poisoned(len(x))
    simulator.run("quantize_rows", seed, ["q", "scale"], dtype=CODES[x.dtype], q_dtype=CODES[q_dtype],
                  rows=x.shape[0], columns=x.shape[1], x=x, q=q, scale=scale)  # fmt: skip
    return q, scale


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", [(1, 4), (3, 64), (2, 100), (5, 33), (2, 2052), (1, 9000)], ids=str)
def test_quantize_rows(simulator, dtype, shape):
    x = tensor(shape, dtype, 0, 3.0)
    x[0] = 0
    q, scale = quantise(simulator, x, torch.uint8, seed=1)
    want, want_scale = reference.quantize_rows(x)
    assert torch.equal(q, want) and torch.equal(scale, want_scale)
    q, scale = quantise(simulator, x, torch.float8_e4m3fn, seed=2)
    want, want_scale = reference.quantize_rows_fp8(x)
    assert torch.equal(q.view(torch.uint8), want.view(torch.uint8)) and torch.equal(scale, want_scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_quantize_rows_gives_the_bytes_of_the_cpu(plain, dtype):
    """On ties as well: x / scale is often half of an odd number here."""
    x = (torch.arange(-254, 254).view(4, 127) / 2).to(dtype)
    x[:, 0] = 127
    q, scale = torch.empty(x.shape, dtype=torch.uint8), torch.empty(len(x))
    ops.quantize_rows(x, q, scale)
    assert all(torch.equal(a, b) for a, b in zip(quantise(plain, x, torch.uint8), (q, scale), strict=True))


@pytest.mark.parametrize("q_dtype", [torch.uint8, torch.float8_e4m3fn], ids=name_of)
def test_rows_that_are_not_finite(simulator, q_dtype):
    x = tensor((5, 520), torch.float32, 0)
    x[1, 519], x[2, 0], x[3, 31] = torch.nan, torch.inf, -torch.inf
    assert quantise(simulator, x, q_dtype)[1].isnan().tolist() == [False, True, True, True, False]


def test_every_number_of_e4m3(plain):
    """Those half way between two of them, too; what is beyond the largest stays there."""
    numbers = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = numbers[numbers.isfinite()].sort().values
    between = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat((numbers, between, between * 1.001, torch.tensor([448.0]))).view(1, -1)
    q, _ = quantise(plain, x, torch.float8_e4m3fn)
    assert torch.equal(q.view(torch.uint8), x.to(torch.float8_e4m3fn).view(torch.uint8))


class Case:
    """A linear layer of `kind` (the type of x) and its packed weight, in the GPU's layout."""

    def __init__(self, kind: torch.dtype, rows: int, inputs: int, outputs: int):
        wide = tensor((rows, inputs), torch.float32, 0)
        weight = tensor((outputs, inputs), torch.float32, 1, inputs**-0.5)
        self.kind, self.shape, self.x_scale = kind, (rows, inputs, outputs), None
        if kind == torch.uint8:
            self.x, self.x_scale = reference.quantize_rows(wide)
            int8 = quantize_weight(weight)
            self.weight = packing._fragments(*int8)
            self.want = reference.int8_linear(self.x, self.x_scale, *int8)
        elif kind == torch.float8_e4m3fn:
            self.x, self.x_scale = reference.quantize_rows_fp8(wide)
            fp8 = quantize_weight(weight, torch.float8_e4m3fn)
            self.weight = packing._fragments(*fp8)
            self.want = reference.fp8_linear(self.x, self.x_scale, *fp8)
        else:
            self.x, weight = wide.to(kind), weight.to(kind)
            self.weight = packing._fragments(weight)
            self.want = (self.x.double() @ weight.double().T).float()

    def run(self, simulator, out_dtype, seed=0, first=0, last=None, **fields) -> torch.Tensor:
        """out of the rows [first, last); guard bands around it are looked at."""
        x = self.x.view(torch.uint8)[first:last].contiguous()
        scale = None if self.x_scale is None else self.x_scale[first:last].contiguous()
        rows, (_, inputs, outputs) = len(x), self.shape
        out = poisoned(rows, outputs, dtype=out_dtype)
        simulator.run("linear", seed, ["out"], dtype=CODES[out_dtype], x_dtype=CODES[self.kind], rows=rows,
                      inputs=inputs, outputs=outputs, x=x, x_scale=scale, weight=self.weight, out=out,
                      **fields)  # fmt: skip
        return out


KINDS = [torch.bfloat16, torch.float16, torch.uint8, torch.float8_e4m3fn]
KIND = pytest.mark.parametrize("kind", KINDS, ids=name_of)
# rows, inputs, outputs: every tile of rows and beyond; partial groups, quads and steps; inputs whose rows
# allow no access to 16 bytes; fewer steps than warps
SHAPES = [
    (1, 4, 1), (3, 64, 33), (8, 160, 64), (9, 1028, 31), (20, 256, 130), (33, 2064, 65), (70, 96, 8),
    (130, 20, 7),
]  # fmt: skip


def check(case: Case, simulator, out_dtype, **options):
    out = case.run(simulator, out_dtype, **options)
    if case.kind == torch.uint8:
        assert torch.equal(out, case.want.to(out_dtype))
    else:
        assert close(out, case.want, out_dtype)


@KIND
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(plain, kind, shape):
    check(Case(kind, *shape), plain, torch.float32, seed=1)


@KIND
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16], ids=name_of)
def test_types_of_the_output(plain, kind, out_dtype):
    check(Case(kind, 5, 192, 70), plain, out_dtype)
    check(Case(kind, 5, 192, 72), plain, out_dtype, splits=2)


@KIND
@pytest.mark.parametrize("splits", [1, 2, 3, 7])
def test_splits(plain, kind, splits):
    check(Case(kind, 11, 1600, 70), plain, torch.float32, seed=splits, splits=splits)


@KIND
@pytest.mark.parametrize("splits", [1, 3])
def test_under_the_sanitizers(kind, splits):
    sanitized = HostSim("sanitized")
    for shape in ((3, 100, 33), (17, 672, 66), (33, 64, 4)):
        check(Case(kind, *shape), sanitized, torch.float32, seed=3, splits=splits)


@KIND
def test_a_row_does_not_depend_on_the_others(plain, kind):
    """Whatever tile of rows it lies in."""
    case = Case(kind, 65, 1056, 70)
    together = case.run(plain, torch.float32, splits=2)
    for first, last in ((0, 1), (3, 12), (30, 50), (20, 60)):
        assert torch.equal(case.run(plain, torch.float32, 0, first, last, splits=2), together[first:last])


@KIND
def test_order_of_threads_changes_no_bit(plain, kind):
    case = Case(kind, 9, 1056, 70)
    results = [case.run(plain, torch.float32, seed, splits=2) for seed in range(4)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_int8_gives_the_bits_of_the_cpu(plain):
    x, int8 = tensor((19, 1028), torch.float32, 0), quantize_weight(tensor((77, 1028), torch.float32, 1))
    case = Case(torch.uint8, 19, 1028, 77)
    case.x, case.x_scale = reference.quantize_rows(x)
    case.weight = packing._fragments(*int8)
    want = torch.empty(19, 77)
    ops.linear(case.x, case.x_scale, ops.pack_int8_weight(*int8), want)
    assert torch.equal(case.run(plain, torch.float32), want)


def test_int8_at_its_largest(plain):
    """All products at their limit: the sum still fits."""
    inputs = 65_536
    case = Case(torch.uint8, 2, inputs, 2)
    case.x = torch.tensor([1, 255], dtype=torch.uint8)[:, None].expand(2, inputs).contiguous()
    values = torch.tensor([-127, 127], dtype=torch.int8)[:, None].expand(2, inputs).contiguous()
    case.x_scale, case.weight = torch.ones(2), packing._fragments(values, torch.ones(2))
    most = 127 * 127 * inputs
    assert case.run(plain, torch.float32).tolist() == [[most, -most], [-most, most]]


def test_float8_where_there_is_no_code_for_it(plain):
    message = "float8 needs a GPU of compute capability 8.9 or later .* this GPU runs are for 8.6"
    with pytest.raises(SimulatorError, match=message):
        Case(torch.float8_e4m3fn, 3, 64, 5).run(plain, torch.float32, architecture=86)
    with pytest.raises(SimulatorError, match=message):
        x = torch.ones(2, 16)
        plain.run("quantize_rows", dtype=0, q_dtype=4, rows=2, columns=16, x=x, q=x, scale=x, architecture=86)
    assert not Case(torch.uint8, 3, 64, 5).run(plain, torch.float32, architecture=80).isnan().any()


@pytest.mark.parametrize("kind", [torch.uint8, torch.float8_e4m3fn], ids=name_of)
def test_scales_that_are_nan(plain, kind):
    case = Case(kind, 3, 64, 5)
    case.x_scale[1] = torch.nan
    assert case.run(plain, torch.float32).isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
@pytest.mark.parametrize("shape", [(64, 32), (70, 34), (1, 2), (130, 100)], ids=str)
def test_unpacking_undoes_packing(dtype, shape):
    weight = tensor(shape, dtype, 0)
    assert torch.equal(packing.unpack_weight(packing._fragments(weight), *shape, dtype), weight)
