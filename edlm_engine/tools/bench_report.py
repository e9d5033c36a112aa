"""`edlm bench`: the time of a model's forwards by their rows, and what the engine adds to them."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..engine import Engine
from ..files import replace_file
from ..progress import progress_bar
from .metering import Meter, step_times
from .profiling import gpu_activity
from .tables import step_table

_LABELS = {
    "ms_per_step": ("ms from step to step", "{:.2f}"),
    "ms_per_forward": ("ms per forward, median", "{:.2f}"),
    "host_ms_per_step": ("ms per step of Python and C++ on the host", "{:.2f}"),
    "tokens_per_s": ("tokens/s", "{:.0f}"),
    "forwards_per_s": ("forwards/s", "{:.1f}"),
    "tokens_per_forward": ("tokens per forward", "{:.2f}"),
    "head_and_unmask_share": ("time in head and unmasking", "{:.1%}"),
    "scheduler_and_python_share": ("time in scheduler and Python", "{:.1%}"),
    "synchronisations_per_block": ("waits for the GPU per block", "{:.1f}"),
    "launches_per_step": ("launches per step", "{:.1f}"),
    "kernels_per_step": ("kernels per step", "{:.0f}"),
    "gpu_ms_per_step": ("ms of work on the GPU per step", "{:.2f}"),
    "outside_kernels_share": ("time outside kernels", "{:.1%}"),
}  # a figure is left out where it cannot be seen


def measure(engine: Engine, prefix: int, steps: int, max_new_tokens: int) -> dict:
    """{"engine", "step_ms": {rows: ms}, "generation": figures of Meter.run and, on a GPU, of gpu_activity},
    by the fixed schedule.

    engine: fresh, without a request before. Raises ValueError for an autoregressive checkpoint, and where
    prefix and tokens do not fit.
    """
    if engine.decoding.autoregressive:
        raise ValueError(f"{engine.path}: is autoregressive; edlm bench times denoising")
    longest = engine.decoding.block_length
    rows = sorted({r for r in (1, 2, 4, 8, 16, 32, 64, 128) if r < longest} | {longest})
    with progress_bar("timing steps", 2) as tick:
        step_seconds = step_times(engine, rows, prefix)
        tick()
        prompt = [1 + i % 64 for i in range(prefix)]
        params = {"max_new_tokens": max_new_tokens, "threshold": None, "steps_per_block": steps,
                  "ignore_eos": True}  # fmt: skip
        meter = Meter(engine)
        meter.run([prompt], **params)
        generation = meter.run([prompt], **params)
        if engine.device.startswith("cuda"):
            generation |= gpu_activity(engine, [prompt], params)
        tick()
    about = {"model": engine.path.name, "device": engine.device, "dtype": engine.dtype,
             "quantization": engine.quantization, "stepping": engine.stepping,
             "threads": engine.num_threads, "prefix": prefix,
             "block_length": longest, "steps_per_block": steps}  # fmt: skip
    return {
        "engine": about,
        "step_ms": {r: 1e3 * s for r, s in step_seconds.items()},
        "generation": generation,
    }


def print_tables(console: Console, found: dict) -> None:
    console.print(", ".join(f"{key} {value}" for key, value in found["engine"].items()), style="dim")
    console.print(step_table("One denoising step", found["step_ms"]))
    table = Table("", "", title="One generation", show_header=False)
    for key, (label, form) in _LABELS.items():
        if (figure := found["generation"].get(key)) is not None:
            table.add_row(label, form.format(figure))
    console.print(table)


def save(path: Path, found: dict) -> None:
    text = json.dumps(found, indent=1) + "\n"
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
