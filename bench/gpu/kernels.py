"""Every CUDA kernel beside torch's ways to the same result: microseconds, GB/s, share of the measured copy
bandwidth. `--dry-run`: small shapes on the CPU, to see that the script runs; its times mean nothing.

The calls of one measurement go round through inputs that together exceed the second-level cache, captured in
one CUDA graph; the time is the median of its replays divided by the calls. One JSON document goes to --out,
again after every shape. Compiling torch's ways takes most of the time: after --seconds no more are compiled.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from stopwatch import Stopwatch, save
from torch import Tensor

from edlm_engine import ops
from edlm_engine.policies import Threshold
from edlm_engine.steps.block_state import BlockState

COMPILED = ("flex", "compiled", "head and compiled softmax, topk")
COLD_BYTES = 256 << 20  # more than any second-level cache


@dataclass
class Bench:
    """Times calls and keeps the results."""

    watch: Stopwatch
    out: str
    seconds_to_compile: float = float("inf")
    started: float = field(default_factory=time.monotonic)
    bandwidth: float = 0.0  # bytes per second, read plus written, of a large copy
    results: list[dict] = field(default_factory=list)

    @property
    def dry_run(self) -> bool:
        return self.watch.dry_run

    @property
    def device(self) -> str:
        return self.watch.device

    def seconds(self, calls: list[Callable]) -> float:
        return self.watch.seconds(calls)

    def compare(self, op: str, shape: str, nbytes: float, ways: dict[str, Callable[[], list[Callable]]]):
        """ways: by name, functions that make the calls; the first is ours. A way that fails is noted."""
        row = {"op": op, "shape": shape, "bytes": nbytes}
        for name, make in ways.items():
            if name in COMPILED and time.monotonic() - self.started > self.seconds_to_compile:
                row[f"{name} failed"] = "no time left to compile it"
                continue
            try:
                row[name] = self.seconds(make()) * 1e6
            except Exception as error:  # one missing alternative must not cost the other numbers
                row[f"{name} failed"] = f"{type(error).__name__}: {error}"[:300]
        ours = row.get("edlm")
        if ours and self.bandwidth:
            row["gb_per_s"] = nbytes / ours / 1e3
            row["of_copy"] = nbytes / ours * 1e6 / self.bandwidth
        others = [row[name] for name in ways if name != "edlm" and name in row]
        if ours and others:
            row["speedup"] = min(others) / ours
        self.results.append(row)
        print(line_of(row), flush=True)
        self.save()

    def save(self, failure: str | None = None):
        save(self.out, {
            "device": self.watch.name(), "torch": torch.__version__, "copy_gb_per_s": self.bandwidth / 1e9,
            "results": self.results, "failure": failure,
        })  # fmt: skip

    def measure_copy(self):
        self.bandwidth = self.watch.copy_bandwidth()
        print(f"copy {self.bandwidth / 1e9:.0f} GB/s\n{HEADINGS}", flush=True)

    def rotate(self, nbytes: int) -> int:
        """How many inputs of that size one measurement goes through."""
        return 2 if self.dry_run else max(2, min(64, -(-COLD_BYTES // max(1, nbytes))))


def compiled(function: Callable, bench: Bench) -> Callable:
    """torch.compile, but not in a dry run: it takes long."""
    return function if bench.dry_run else torch.compile(function, dynamic=False)


def attention(bench: Bench, dtype, rows: int, prefix: int, batch: int, causal: bool = False):
    """Qwen3-8B's heads, 32 and 8 of 128. The last `rows` keys are the block's own."""
    heads, kv_heads, dim, page = (8, 2, 64, 64) if bench.dry_run else (32, 8, 128, 64)
    keys, device = prefix + rows, bench.device
    pages = -(-keys // page)
    kv_bytes = 2 * batch * pages * page * kv_heads * dim * dtype.itemsize
    qo_bytes = 2 * batch * rows * heads * dim * dtype.itemsize
    count = bench.rotate(kv_bytes)
    q = torch.randn(batch * rows, heads, dim, dtype=dtype, device=device)
    caches = [
        torch.randn(2, batch * pages, kv_heads, page, dim, dtype=dtype, device=device) for _ in range(count)
    ]
    table = torch.arange(batch * pages, dtype=torch.int32, device=device).view(batch, pages)
    blocks = torch.tensor(
        [[i, prefix, rows, keys, int(causal), i * rows] for i in range(batch)],
        dtype=torch.int32,
        device=device,
    )
    out, scale = torch.empty_like(q), dim**-0.5
    q4 = q.view(batch, rows, heads, dim).transpose(1, 2)

    def dense(cache: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, kv heads, keys, dim] from the pages; the gathering is not part of the time."""
        k, v = cache.view(2, batch, pages, kv_heads, page, dim).transpose(2, 3).flatten(3, 4)[..., :keys, :]
        return k.contiguous(), v.contiguous()

    def edlm():
        return [lambda c=c: ops.block_attention(q, c[0], c[1], blocks, table, scale, out) for c in caches]

    def sdpa():
        pairs = [dense(c) for c in caches]
        options = {"is_causal": causal and not prefix, "enable_gqa": True}
        return [lambda k=k, v=v: F.scaled_dot_product_attention(q4, k, v, **options) for k, v in pairs]

    def flex():
        from torch.nn.attention.flex_attention import flex_attention

        call, pairs = compiled(flex_attention, bench), [dense(c) for c in caches]
        return [lambda k=k, v=v: call(q4, k, v, enable_gqa=True) for k, v in pairs]

    ways = {"edlm": edlm, "sdpa": sdpa}
    if not causal:
        ways["flex"] = flex
    used = 2 * batch * keys * kv_heads * dim * dtype.itemsize + qo_bytes
    name = f"{batch} x {rows} rows, prefix {prefix}{', causal' if causal else ''}"
    bench.compare("block_attention", name, used, ways)


def row_ops(bench: Bench, dtype, rows: int):
    """Norm with residual and SwiGLU of Qwen3-4B."""
    hidden, inner = (256, 512) if bench.dry_run else (2560, 9728)
    device, name = bench.device, f"{rows} x {hidden}"

    def tensors(*shape: int, count: int) -> list[Tensor]:
        return [torch.randn(*shape, dtype=dtype, device=device) for _ in range(count)]

    nbytes = 4 * rows * hidden * dtype.itemsize
    count = bench.rotate(nbytes)
    xs, deltas = tensors(rows, hidden, count=count), tensors(rows, hidden, count=count)
    weight, out = torch.ones(hidden, dtype=dtype, device=device), torch.empty_like(xs[0])
    norm = compiled(lambda x, d, w: (x.add_(d), F.rms_norm(x, (hidden,), w, 1e-6)), bench)
    pairs = list(zip(xs, deltas, strict=True))
    bench.compare("rms_norm", name, nbytes, {
        "edlm": lambda: [lambda x=x, d=d: ops.rms_norm(x, d, weight, 1e-6, out) for x, d in pairs],
        "compiled": lambda: [lambda x=x, d=d: norm(x, d, weight) for x, d in pairs],
    })  # fmt: skip

    nbytes = 3 * rows * inner * dtype.itemsize
    gates = tensors(rows, 2 * inner, count=bench.rotate(nbytes))
    product = torch.empty(rows, inner, dtype=dtype, device=device)
    glu = compiled(lambda g: F.silu(g[:, :inner]) * g[:, inner:], bench)
    bench.compare("silu_mul", f"{rows} x {inner}", nbytes, {
        "edlm": lambda: [lambda g=g: ops.silu_mul(g, product) for g in gates],
        "compiled": lambda: [lambda g=g: glu(g) for g in gates],
    })  # fmt: skip


def qkv(bench: Bench, dtype, batch: int, rows: int):
    """Qwen3-8B: QK-norm, 32 and 8 heads of 128."""
    heads, kv_heads, dim, page, device = (8, 2, 64, 64, "cpu") if bench.dry_run else (32, 8, 128, 64, "cuda")
    width, total = (heads + 2 * kv_heads) * dim, batch * rows
    nbytes = total * (2 * width + dim * 2) * dtype.itemsize
    inputs = [torch.randn(total, width, dtype=dtype, device=device) for _ in range(bench.rotate(nbytes))]
    cache = torch.empty(2, batch, kv_heads, page, dim, dtype=dtype, device=device)
    table = torch.arange(batch, dtype=torch.int32, device=device)[:, None].contiguous()
    slots = torch.arange(batch, dtype=torch.int32, device=device).repeat_interleave(rows)
    positions = torch.arange(rows, dtype=torch.int32, device=device).repeat(batch)
    cos_sin = torch.randn(page, dim, device=device)
    norm, q = (
        torch.ones(dim, dtype=dtype, device=device),
        torch.empty(total, heads, dim, dtype=dtype, device=device),
    )

    def torch_way(x: Tensor):
        x = x.view(total, -1, dim)
        qk = F.rms_norm(x[:, : heads + kv_heads].float(), (dim,), norm.float(), 1e-6)
        cos, sin = cos_sin[positions].chunk(2, -1)
        a, b = qk.chunk(2, -1)
        turned = torch.cat((a * cos[:, None] - b * sin[:, None], b * cos[:, None] + a * sin[:, None]), -1)
        cache[0, slots, :, positions] = turned[:, heads:].to(dtype)
        cache[1, slots, :, positions] = x[:, heads + kv_heads :]
        q.copy_(turned[:, :heads])

    way = compiled(torch_way, bench)
    arguments = (None, norm, norm, cos_sin, slots, positions, table, cache[0], cache[1], q, 1e-6)
    bench.compare("qkv_prepare", f"{batch} x {rows} rows", nbytes, {
        "edlm": lambda: [lambda x=x: ops.qkv_prepare(x, *arguments) for x in inputs],
        "compiled": lambda: [lambda x=x: way(x) for x in inputs],
    })  # fmt: skip


def row_stats(bench: Bench, dtype, rows: int, temperature: float = 0.0, top_p: float = 1.0):
    """Head and statistics. Bytes: weights once, fp32 logits written and read. "head": the product alone."""
    hidden_size, vocab = (128, 3000) if bench.dry_run else (2560, 151936)
    device = bench.device
    hidden = torch.randn(rows, hidden_size, dtype=dtype, device=device)
    weight = torch.randn(vocab, hidden_size, dtype=dtype, device=device) * hidden_size**-0.5
    slots = torch.zeros(rows, dtype=torch.int32, device=device)
    positions = torch.arange(rows, dtype=torch.int32, device=device)
    state = BlockState(1, 1, None, device)
    state.begin_request(0, Threshold(), temperature=temperature, top_p=top_p, seed=1)
    state.upload()
    ids = torch.empty(rows, 2, dtype=torch.int32, device=device)
    stats = torch.empty(rows, 5, device=device)

    def head() -> Tensor:
        return (
            (hidden @ weight.T).float()
            if bench.dry_run
            else torch.mm(hidden, weight.T, out_dtype=torch.float32)
        )

    def torch_way(logits: Tensor):
        log_p = logits.log_softmax(-1)
        top = log_p.topk(2)
        return top, -(log_p.exp() * log_p).sum(-1), logits.logsumexp(-1)

    way = compiled(torch_way, bench)
    nbytes = vocab * hidden_size * dtype.itemsize + 8 * rows * vocab
    name = f"{rows} x {vocab}, temperature {temperature}, top_p {top_p}"
    call = [lambda: ops.row_stats(hidden, weight, state.records, slots, positions, -1, ids, stats)]
    bench.compare("row_stats", name, nbytes, {
        "edlm": lambda: call, "head and compiled softmax, topk": lambda: [lambda: way(head())],
    })  # fmt: skip
    logits_alone = bench.results[-1]
    logits_alone["head"] = bench.seconds([head]) * 1e6
    if "edlm" in logits_alone and bench.bandwidth:
        rest = logits_alone["edlm"] - logits_alone["head"]
        logits_alone["statistics"] = rest
        logits_alone["statistics_of_copy"] = 4 * rows * vocab / rest * 1e6 / bench.bandwidth


HEADINGS = f"{'op':16} {'shape':44} {'µs':>9} {'GB/s':>8} {'of copy':>8} {'best torch µs':>14} {'ratio':>6}"


def line_of(row: dict) -> str:
    ours, ratio = row.get("edlm"), row.get("speedup")
    cells = [f"{row['op']:16} {row['shape']:44}", f"{ours:9.1f}" if ours else "   failed"]
    cells += [f"{row.get('gb_per_s', 0):8.0f}", f"{row.get('of_copy', 0):8.2f}"]
    cells += [f"{ours * ratio:14.1f} {ratio:6.2f}" if ours and ratio else f"{'-':>14} {'-':>6}"]
    return " ".join(cells)


def run(bench: Bench):
    """The shapes that models.py does not show as a whole come last: time may be short."""
    dtype, dry = torch.bfloat16, bench.dry_run
    bench.measure_copy()
    prefixes = (32, 100) if dry else (512, 4096, 32768)
    for prefix in prefixes:
        attention(bench, dtype, 4 if dry else 32, prefix, 1)
    for rows in (2, 4) if dry else (32, 512):
        row_ops(bench, dtype, rows)
        qkv(bench, dtype, rows // 2 if dry else rows // 32, 2 if dry else 32)
    for rows in (1, 3) if dry else (1, 32, 256):
        row_stats(bench, dtype, rows)
    row_stats(bench, dtype, 3 if dry else 32, 0.8, 0.9)
    attention(bench, dtype, 1, prefixes[-1], 1)
    attention(bench, dtype, 4 if dry else 32, prefixes[1], 2 if dry else 16)
    attention(bench, dtype, 40 if dry else 4096, 0, 1, causal=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    arguments = parser.parse_args()
    bench = Bench(Stopwatch(arguments.dry_run), arguments.out, arguments.seconds)
    torch.manual_seed(0)
    failure = None
    try:
        with torch.inference_mode():
            run(bench)
    except Exception as error:  # what was measured before is kept
        failure = f"{type(error).__name__}: {error}"
    bench.save(failure)
    if failure:
        raise SystemExit(failure)


if __name__ == "__main__":
    main()
