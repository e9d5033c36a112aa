"""A whole model of the paper's, random weights in its shape: steps against the memory's floor, tokens per
second beside the paper's and beside what one would otherwise run, and the ways of the loop beside each other.

python bench/gpu/models.py 8B --out models_8B.json [--seconds 90] [--dry-run]

One process, so that all share the GPU's state. The most important comes first; --seconds is the time for all,
and what did not fit is listed as left out. A chart goes beside the JSON. --dry-run: a tiny shape on the CPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import ours
import torch
from paper import MODELS, PaperModel
from stopwatch import OutOfTime, Stopwatch, save, time_limit

QUANTIZATIONS = (None, "int8", "fp8")
NO_TIME = "no time left"
FOR_PROFILES = 12.0  # seconds, kept to the end: a profiler may slow down, or break, what comes after it
STEPPINGS = ("eager", "graph", "device")
COLUMNS = {
    "ms/step": 8, "of floor": 8, "tokens/s": 9, "at TPF": 9, "host ms": 8, "gaps": 6, "waits": 6,
    "launches": 8,
}  # fmt: skip
HEADINGS = " ".join([" " * 46, *(f"{name:>{width}}" for name, width in COLUMNS.items())])


class Report:
    """The rows of one model, on disk after each. document: see models.py's __init__."""

    def __init__(self, model: PaperModel, watch: Stopwatch, path: Path, seconds: float):
        self.model, self.watch, self.path = model, watch, path
        self._end = time.monotonic() + seconds - FOR_PROFILES
        bandwidth = watch.copy_bandwidth()
        self.document = {
            "model": model.name, "device": watch.name(), "torch": torch.__version__,
            "block_length": model.block, "steps_per_block": model.steps, "copy_bytes_per_s": bandwidth,
            "copy_counts": "bytes read plus bytes written by a large copy on the device",
            "floor_counts": "weights of all linear layers and the head, keys and values of prefix and block, "
            "each read once at the rate of the copy; nothing for activations and logits",
            "paper": {"device": "H100, batch 1", "tokens_per_s": model.tokens_per_s,
                      "tokens_per_forward": model.tpf},
            "forwards": [], "generations": [], "loops": [], "baselines": [], "activity": [], "left_out": [],
        }  # fmt: skip
        print(f"{model.name} on {watch.name()}, copy {bandwidth / 1e9:.0f} GB/s")
        print(f"paper, H100, batch 1: {model.tokens_per_s} tokens/s at {model.tpf} tokens per forward")
        print(HEADINGS, flush=True)
        save(path, self.document)

    def give_the_rest(self) -> None:
        """From here on there is the time that was kept for profiles."""
        self._end += FOR_PROFILES

    def left(self) -> float:
        return self._end - time.monotonic()

    def attempt(self, kind: str, row: dict, call, needs: float = 1.0, limit: float = 40.0) -> dict | None:
        """A row of call()'s figures, or of why there are none. needs: seconds below which it is not begun."""
        label = ", ".join(str(value) for value in row.values())
        if self.left() < needs:
            self.leave_out(kind, label, NO_TIME)
            return None
        try:
            with time_limit(min(limit, self.left())):
                row = row | call()
        except (Exception, OutOfTime) as error:  # one row must not cost the others
            reason = f"{type(error).__name__}: {error}"[:300]
            self.leave_out(kind, label, reason)
            return None
        self.document[kind].append(row)
        print(line(kind, label, row), flush=True)
        save(self.path, self.document)
        return row

    def leave_out(self, kind: str, label: str, reason: str) -> None:
        self.document["left_out"].append({"what": f"{kind}: {label}", "why": reason})
        if reason != NO_TIME:  # of those there may be many
            print(f"{kind + ': ' + label:46} left out: {reason[:80]}", flush=True)
        save(self.path, self.document)


def line(kind: str, label: str, row: dict) -> str:
    keys = {
        "step_ms" if "step_ms" in row else "ms_per_step": ".3f", "of_floor": ".2f", "tokens_per_s": ".1f",
        "tokens_per_s_scaled_to_paper_tpf": ".1f", "host_ms_per_step": ".3f",
        "outside_kernels_share": ".1%", "synchronisations_per_block": ".1f", "launches_per_step": ".1f",
    }  # fmt: skip
    cells = [
        f"{'-' if row.get(key) is None else format(row[key], form):>{width}}"
        for (key, form), width in zip(keys.items(), COLUMNS.values(), strict=True)
    ]
    return " ".join([f"{kind + ': ' + label:46}", *cells])


class Bench:
    """The measurements of one model, in the order of their importance."""

    def __init__(self, report: Report, folder: Path):
        self.report, self.folder = report, folder
        self.model, self.watch = report.model, report.watch
        dry = self.watch.dry_run
        self.prefixes = (16, 40) if dry else (512, 4096, 32768)
        self.batches = (2,) if dry else (4, 16, 64)
        self.tokens = 16 if dry else 256
        self.steppings = ("eager", "direct") if dry else STEPPINGS

    def run(self) -> None:
        for quantization in QUANTIZATIONS:
            self.alone(quantization)
        self.network(compiled=False)
        # compiling a small model takes as long as a large one, all else less
        batched = [lambda q=q: self.batched(q) for q in QUANTIZATIONS]
        compiled = [lambda: self.network(compiled=True)]
        for measure in compiled + batched if self.model.name == "1.5B" else batched + compiled:
            measure()
        longest = max(self.prefixes)
        self.with_engine(None, lambda meter: self.generation(meter, None, longest, 1), 1, longest)
        self.report.give_the_rest()
        self.profiles()

    def with_engine(self, quantization: str | None, measure, batch: int, prefix: int) -> None:
        """measure(meter) on an engine of that kind, with room for so many sequences behind a prefix; noted if
        there is none."""
        label = f"engine {quantization or 'bf16'}"
        if self.report.left() < 3:
            return self.report.leave_out("all", label, NO_TIME)
        where = self.model, self.folder, self.watch.device, quantization
        generated = max(self.tokens, ours.PROFILED_BLOCKS * self.model.block)
        tokens = batch * (prefix + (generated if batch == 1 else self.model.block))
        try:
            ours.with_engine(*where, measure, batch=batch, tokens=tokens)
        except Exception as error:
            self.report.leave_out("all", label, f"{type(error).__name__}: {error}"[:300])
        ours.release()  # not earlier: the error holds on to the engine

    def alone(self, quantization: str | None) -> None:
        """One sequence; in bf16 by every way of the loop."""

        def measure(meter):
            self.steps(meter, quantization, self.prefixes[0], 1)
            self.generation(meter, quantization, self.prefixes[0], 1)
            for stepping in () if quantization else self.steppings:
                arguments = (meter, self.model, stepping, self.prefixes[0], self.tokens)
                row = {"stepping": stepping}
                self.report.attempt("loops", row, lambda a=arguments: ours.loop_figures(*a), 2, 20)
            for prefix in self.prefixes[1:]:
                self.steps(meter, quantization, prefix, 1)
            self.generation(meter, quantization, self.prefixes[1], 1)

        self.with_engine(quantization, measure, 1, max(self.prefixes))

    def batched(self, quantization: str | None) -> None:
        def measure(meter):
            for prefix in self.prefixes:
                for batch in self.batches:
                    self.steps(meter, quantization, prefix, batch)
                for batch in self.batches if prefix == self.prefixes[0] else ():
                    self.generation(meter, quantization, prefix, batch)

        self.with_engine(quantization, measure, max(self.batches), self.prefixes[1])

    def profiles(self) -> None:
        """The ways of the loop under the profiler."""

        def measure(meter):
            for stepping in self.steppings:
                arguments = (meter, self.model, stepping, self.prefixes[0])
                row = {"stepping": stepping}
                self.report.attempt("activity", row, lambda a=arguments: ours.loop_activity(*a))

        self.with_engine(None, measure, 1, self.prefixes[0])

    def steps(self, meter, quantization: str | None, prefix: int, batch: int) -> None:
        weights, kv = self.model.weight_bytes(quantization), self.model.kv_bytes(prefix, batch)
        floor_ms = 1e3 * (weights + kv) / self.report.document["copy_bytes_per_s"]

        def measure() -> dict:
            found = ours.step_seconds(meter, self.watch, prefix, batch)
            return found | {"floor_ms": floor_ms, "of_floor": floor_ms / found["step_ms"],
                            "weight_bytes": weights, "kv_bytes": kv}  # fmt: skip

        row = {"quantization": quantization or "bf16", "prefix": prefix, "batch": batch}
        self.report.attempt("forwards", row, measure)

    def generation(self, meter, quantization: str | None, prefix: int, batch: int) -> None:
        row = {"quantization": quantization or "bf16", "prefix": prefix, "batch": batch,
               "stepping": meter.engine.stepping}  # fmt: skip
        self.report.attempt(
            "generations", row, lambda: ours.generation(meter, self.model, prefix, batch, self.tokens), 2
        )

    def network(self, compiled: bool) -> None:
        """transformers' model; compiling takes most of the time that there is for it."""
        dry = self.watch.dry_run
        if self.report.left() < (15 if compiled and not dry else 1):
            return self.report.leave_out("baselines", "compiled" if compiled else "plain", NO_TIME)
        try:
            import baselines

            network = baselines.open_network(self.model, self.watch.device)
        except Exception as error:
            return self.report.leave_out(
                "baselines", "transformers", f"{type(error).__name__}: {error}"[:300]
            )
        sizes = (self.model, self.watch.device, self.prefixes[0], self.tokens)

        def attempt(what: str, measure, limit: float, **options):
            self.report.attempt(
                "baselines", {"what": what}, lambda: measure(network, *sizes, **options), 2, limit
            )

        if compiled:  # a dry run goes through all but the compiler
            attempt("transformers AR, static cache", baselines.autoregressive, 60)
            attempt("compiled PyTorch loop", baselines.plain_loop, 60, compiled=not dry)
        else:
            attempt("plain PyTorch loop", baselines.plain_loop, 15, compiled=False)
        network = None
        torch.compiler.reset()  # it holds on to what it has compiled
        ours.release()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    model = MODELS[options.model]
    torch.manual_seed(0)
    if options.dry_run:
        model = model.tiny()
        torch.set_num_threads(1)  # tests may share the machine
    report = Report(model, Stopwatch(options.dry_run), options.out, options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        Bench(report, Path(folder) / model.name).run()
    late = sum(left["why"] == NO_TIME for left in report.document["left_out"])
    print(f"{late} measurements left out for lack of time")
    from plots import draw  # what was measured does not depend on matplotlib

    draw(report.document, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
