"""The threads under the ops: right results from any number of them, and none of them awake for nothing."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from op_cases import tensor

from edlm_engine import Engine, ops
from edlm_engine.hardware import machine

X, WEIGHT = tensor((16, 512), torch.float32, 0), ops.pack_weight(tensor((2000, 512), torch.float32, 1))


def product(threads: int) -> torch.Tensor:
    torch.set_num_threads(threads)
    out = torch.zeros(16, 2000)
    ops.linear(X, None, WEIGHT, out)
    return out


def test_changing_numbers_of_threads(threads):
    want = product(1)
    for n in (2, 5, 3, 16, 2, 1, 4):
        assert torch.equal(product(n), want)


def test_callers_have_threads_of_their_own(threads):
    want = product(1)
    with ThreadPoolExecutor(6) as pool:
        for result in pool.map(product, [1 + i % 4 for i in range(60)]):
            assert torch.equal(result, want)


def test_idle_threads_sleep(threads):
    product(4)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.1


def test_all_ops_share_the_threads_of_their_caller(threads):
    def count() -> int:
        return len(os.listdir("/proc/self/task"))

    wide, out, product_of = torch.zeros(64, 8192), torch.zeros(64, 4096), torch.zeros(16, 2000)
    q, scale = torch.zeros(64, 8192, dtype=torch.uint8), torch.zeros(64)

    def run():  # in a thread of its own, which takes its pool along
        torch.set_num_threads(3)
        before = count()
        for _ in range(3):  # nothing here may start torch's own threads
            ops.linear(X, None, WEIGHT, product_of)
            ops.silu_mul(wide, out)
            ops.quantize_rows(wide, q, scale)
        return count() - before

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run).result() == 2


def test_many_short_ops(threads):
    """Wake-ups, sleeps and early ends in every order; one that is missed hangs."""
    x, out, want = X[:1].clone(), torch.zeros(1, 2000), torch.zeros(1, 2000)
    ops.linear(x, None, WEIGHT, want)
    torch.set_num_threads(3)
    for i in range(3000):
        ops.linear(x, None, WEIGHT, out.zero_())
        assert torch.equal(out, want)
        if i % 100 == 0:
            time.sleep(0.001)


def test_forked_child_computes():
    code = """
import os, torch  # torch's own threads would hang in the child: it must not need them
from test_thread_pool import product
want = product(3)
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert torch.equal(product(3), want)
else:
    os._exit(7 if torch.equal(product(3), want) and torch.equal(product(2), want) else 1)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, check=True, timeout=120, cwd=__file__.rpartition("/")[0])


@pytest.mark.parametrize(
    ("cpus", "quota", "threads"),
    [
        (range(8), "max 100000", 4),
        (range(8), "150000 100000", 2),
        (range(8), "5000 100000", 1),
        ([0, 1], "", 1),
    ],
)
def test_default_threads(monkeypatch, cpus, quota, threads):
    """Eight processors in pairs, under several quotas of time."""

    def read_text(path):
        if not quota:
            raise FileNotFoundError
        return quota

    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(cpus))
    monkeypatch.setattr(machine, "_core", lambda cpu: str(cpu // 2))
    monkeypatch.setattr(machine.Path, "read_text", read_text)
    assert machine.default_threads() == threads


class NewStorages(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the operators whose results are neither views of their arguments nor the arguments."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [t for t in (*args, *(kwargs or {}).values()) if isinstance(t, torch.Tensor)]
        known = {t.untyped_storage().data_ptr() for t in tensors}
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        if any(isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in known for t in results):
            self.seen.append(str(func))
        return result


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_allocates_no_tensor(quantization, dtype, monkeypatch):
    """Once the buffers have their size: prompt, first step and 30 more, of three sequences."""
    monkeypatch.setattr("edlm_engine.models.linears.has_amx", lambda: False)
    with Engine("edlm-tiny", quantization=quantization, dtype=dtype) as engine:
        params = {"max_new_tokens": 32, "threshold": None, "ignore_eos": True}
        prompts = ["Q: 1 + 2 = ?\nA: ", "Q: Sort", "Q: Sort [1, 2]"]
        engine.generate(prompts, **params)
        recorder, step = NewStorages(), engine._loop._runner.step

        def recorded(*inputs):
            with recorder:
                step(*inputs)

        engine._loop._runner.step = recorded
        engine.generate(prompts, **params)
    assert recorder.seen == []


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_generations_are_bit_equal_for_any_number_of_threads(quantization):
    prompts = ["Q: 1 + 2 = ?\nA: ", "Q: Sort [31, 4, 15] in ascending order.\nA: "]
    found = []
    for n in (1, 2, 3):
        with Engine("edlm-tiny", dtype="bfloat16", quantization=quantization, num_threads=n) as engine:
            results = engine.generate(prompts, threshold=0.7, max_new_tokens=48, ignore_eos=True)
        found.append([(r.token_ids, r.confidences, r.commit_steps) for r in results])
    assert found[0] == found[1] == found[2]
