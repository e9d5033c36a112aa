"""What `edlm tune` shows and keeps: two tables, a plot, a settings file."""

import datetime
import io
import os
from itertools import product
from pathlib import Path

import torch
from rich.console import Console

from .. import __version__, ops
from ..engine import Engine
from ..files import replace_file
from ..settings import save_settings
from .tables import step_table, table
from .tune import Setting, Tuning

LINES = ("-", "--", ":", "-.")  # by kind of policy


def print_tables(console: Console, tuning: Tuning) -> None:
    step_ms = {rows: 1e3 * seconds for rows, seconds in tuning.step_seconds.items()}
    console.print(step_table("One denoising step on this machine", step_ms))
    headings = ("block length", "policy", "tokens per forward", "tokens/s", "agreement")
    settings = table("On the prompts, one at a time", headings)
    for setting in (tuning.reference, *tuning.settings):
        chosen = setting == tuning.best
        settings.add_row(*_cells(setting), style="bold green" if chosen else "")
    console.print(settings)
    best = tuning.best
    if best == tuning.reference:
        console.print(f"No setting agrees to {1 - tuning.loss:.1%}: one token per step stays.")
        return
    faster = best.tokens_per_second / tuning.reference.tokens_per_second
    console.print(
        f"[bold green]block_length={best.block_length}, policy={best.policy!r}[/bold green]: "
        f"{best.tokens_per_second:.0f} tokens/s, {faster:.1f} times one token per step, "
        f"{best.agreement:.1%} of its tokens.",
        soft_wrap=True,
    )


def _cells(setting: Setting) -> tuple[str, ...]:
    policy = "one token per step" if setting.policy == "schedule" else setting.policy
    return (
        str(setting.block_length), policy, f"{setting.tokens_per_forward:.2f}",
        f"{setting.tokens_per_second:.0f}", f"{setting.agreement:.1%}",
    )  # fmt: skip


def save(path: Path, engine: Engine, tuning: Tuning) -> None:
    """The file that Engine(settings=...) takes."""
    best = tuning.best
    machine = {"isa": ops.build_info()["isa"], "processors": os.cpu_count(), "threads": engine.num_threads}
    save_settings(
        path,
        {"block_length": best.block_length, "policy": best.policy},
        model=engine.path.name,
        date=datetime.date.today().isoformat(),
        engine={"device": engine.device, "dtype": engine.dtype, "quantization": engine.quantization},
        machine=machine,
        versions={"edlm_engine": __version__, "torch": torch.__version__},
        measured=tuning.to_dict(),
    )


def try_plotting(path: Path) -> None:
    """Draw nothing in the format that the file's suffix asks for, to know before the work what is missing.

    Raises ImportError without matplotlib, ValueError for a suffix that it does not know.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"{path}: the plot needs matplotlib: pip install matplotlib") from None
    figure = Figure((1, 1))
    known = sorted(figure.canvas.get_supported_filetypes())
    if _format(path) not in known:
        suffixes = ", ".join(f".{suffix}" for suffix in known)
        raise ValueError(f"{path}: the suffix of a plot must be one of {suffixes}")
    figure.savefig(io.BytesIO(), format=_format(path))


def _format(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def plot(path: Path, name: str, tuning: Tuning) -> None:
    """Tokens per second against agreement, a line per block length and kind of policy; time of a step against
    its rows. Raises what try_plotting() does."""
    try_plotting(path)
    from matplotlib.figure import Figure

    figure = Figure((11, 4.2))
    left, right = figure.subplots(1, 2)
    _plot_settings(left, tuning)
    rows = list(tuning.step_seconds)
    right.plot(rows, [1e3 * s for s in tuning.step_seconds.values()], "o-")
    right.set(xlabel="rows", ylabel="ms per denoising step", xlim=(0, None), ylim=(0, None))
    title = f"{name}: numbers are the policies', the circle is the choice"
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.tight_layout()
    undated = {"Software": None} if _format(path) == "png" else None
    replace_file(
        path, lambda partial: figure.savefig(partial, format=_format(path), dpi=130, metadata=undated)
    )


def _plot_settings(axes, tuning: Tuning) -> None:
    names = [setting.policy.partition(":")[0] for setting in tuning.settings]
    kinds = list(dict.fromkeys(names))
    blocks = sorted({setting.block_length for setting in tuning.settings})
    for kind, block_length in product(kinds, blocks):
        line = [
            s
            for s, name in zip(tuning.settings, names, strict=True)
            if s.block_length == block_length and name == kind
        ]
        x, y = [100 * s.agreement for s in line], [s.tokens_per_second for s in line]
        style = LINES[kinds.index(kind) % len(LINES)]
        axes.plot(
            x, y, f"o{style}", color=f"C{blocks.index(block_length)}", label=f"{kind}, block {block_length}"
        )
        for setting, at in zip(line, zip(x, y, strict=True), strict=True):
            numbers = setting.policy.partition(":")[2]
            axes.annotate(numbers, at, (3, 4), textcoords="offset points", fontsize=6)
    reference, best = tuning.reference, tuning.best
    axes.plot(100 * reference.agreement, reference.tokens_per_second, "ks", label="one token per step")
    axes.plot(100 * best.agreement, best.tokens_per_second, "o", ms=14, mfc="none", mec="green", mew=2)
    axes.axvline(100 * (1 - tuning.loss), color="gray", lw=0.8, ls="--")
    axes.set(xlabel="agreement with one token per step, %", ylabel="tokens per second", ylim=(0, None))
    axes.legend(fontsize=8)
