"""The CUDA kernels' own source on the CPU: builds csrc/host_sim and runs single ops of it."""

import struct
import subprocess
from pathlib import Path

import torch
from build_variants import alone

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "host_sim"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS = {"plain": ["-O2"], "unoptimised": ["-O0"], "sanitized": ["-O1", "-g", *SANITIZERS]}
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class SimulatorError(Exception):
    """The simulator or a sanitizer found a fault; the message is what it said."""


class HostSim:
    """variant: "plain", "unoptimised" (compiles in a fifth of the time, for kernels that run once) or
    "sanitized" (address and undefined behaviour); name: for another csrc than ours."""

    def __init__(self, variant: str, csrc: Path = ROOT / "csrc", name: str = ""):
        self._program = BUILD / (name or variant)
        folders = [csrc, csrc / "cuda", csrc / "step", csrc / "host_sim"]
        headers = [path for folder in folders for path in folder.glob("*.*h")]
        sources = [csrc / f"host_sim/{name}.cpp" for name in ("run", "machine", "fiber")]
        newest = max(path.stat().st_mtime for path in [*headers, *sources])
        with alone(self._program.with_suffix(".lock")):
            if not self._program.exists() or self._program.stat().st_mtime <= newest:
                self._compile(FLAGS[variant], sources)

    def _compile(self, flags: list[str], sources: list[Path]):
        fresh = self._program.with_suffix(".new")
        command = ["c++", "-std=c++17", *flags, *WARNINGS]
        subprocess.run([*command, "-DEDLM_HOST_SIM", *sources, "-o", fresh], check=True)
        fresh.replace(self._program)

    def run(self, op: str, seed: int = 0, outputs=(), /, **fields) -> None:
        """Run an op. Fields: tensors, ints, floats, or None (left out); those named in `outputs` are changed
        in place. Seed 0 is the simplest order of the threads. Raises SimulatorError."""
        given = {name: value for name, value in fields.items() if value is not None}
        case = b"".join(_field(name, value, name in outputs) for name, value in given.items())
        options = {"ASAN_OPTIONS": "detect_leaks=0"}
        done = subprocess.run([self._program, op, str(seed)], input=case, capture_output=True, env=options)
        if done.returncode != 0:
            raise SimulatorError(done.stderr.decode(errors="replace"))
        result = done.stdout
        for name, tensor in given.items():
            if name in outputs:
                data, result = result[: tensor.nbytes], result[tensor.nbytes :]
                tensor.view(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        assert not result


def _field(name: str, value, output: bool) -> bytes:
    if isinstance(value, torch.Tensor):
        assert value.is_contiguous()
        kind, data = "o" if output else "b", value.flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, int):
        kind, data = "i", struct.pack("q", value)
    else:
        kind, data = "f", struct.pack("f", value)
    return f"{name} {kind} {len(data)}\n".encode() + data


def poisoned(*shape: int, dtype=torch.float32) -> torch.Tensor:
    """An output to be written: NaN, or -77 for integers."""
    return torch.full(shape, torch.nan if dtype.is_floating_point else -77, dtype=dtype)


def close(out: torch.Tensor, want: torch.Tensor, dtype) -> bool:
    """Within a few roundings of dtype; False where either is NaN."""
    steps = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    error = (out.double() - want.double()).abs()
    return bool((error <= steps * (want.double().abs() + want.double().abs().mean())).all())
