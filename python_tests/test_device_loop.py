"""edlm_engine.device_led.device_loop on a mock of the CUDA runtime, and on a GPU where there is one."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from host_sim import WARNINGS
from loop_mock import NEW, OLD, compiled, needs_headers

from edlm_engine import ops
from edlm_engine.device_led import device_loop
from edlm_engine.device_led.device_loop import DeviceLoop

KERNEL, HOST, ALLOCATION = 0, 3, 10  # cudaGraphNodeType


@pytest.fixture(scope="module")
def mock(tmp_path_factory) -> Path:
    return compiled(tmp_path_factory.mktemp("loop") / "mock.so", "-O0", "-shared", "-fPIC", *WARNINGS)


@pytest.fixture
def native(mock, monkeypatch) -> ctypes.CDLL:
    """The mock in place of edlm_engine's own library; a tensor of the CPU counts as one of a GPU."""
    monkeypatch.setattr(device_loop, "_LIBRARY", mock)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    library = ctypes.CDLL(str(mock))
    library.mock_captured.restype = ctypes.c_void_p
    library.mock_ran.restype = ctypes.c_char_p
    library.mock_reset(ctypes.c_uint64(1), NEW, -1)
    return library


class Captured:
    """Like torch's graph of a step."""

    def __init__(self, native, name: bytes, nodes=1, kind=KERNEL):
        self._raw = native.mock_captured(name, nodes, kind)

    def raw_cuda_graph(self) -> int:
        return self._raw


def script(native, pairs) -> torch.Tensor:
    control = torch.zeros(ops.CONTROL_WORDS, dtype=torch.int32)
    numbers = torch.tensor(pairs, dtype=torch.int32)
    native.mock_script(ctypes.c_void_p(numbers.data_ptr()), len(pairs), ctypes.c_void_p(control.data_ptr()))
    return control


@needs_headers
def test_python_side(native):
    control = script(native, [(1, 1), (1, 0), (1, 0), (0, 1)])
    loop = DeviceLoop(Captured(native, b"commit"), Captured(native, b"plain").raw_cuda_graph(), control, 2)
    loop.launch(0)
    assert control[:3].tolist() == [1, 0, 2]
    loop.launch(0)
    assert control[:3].tolist() == [0, 1, 1] and native.mock_ran() == b"|cp|p"
    assert native.mock_alive() == 1
    loop.close()
    loop.close()
    assert native.mock_alive() == 0
    with pytest.raises(RuntimeError, match="the loop is closed"):
        loop.launch(0)


@needs_headers
def test_a_forgotten_loop_is_freed(native):
    loop = DeviceLoop(Captured(native, b"commit"), Captured(native, b"plain"), script(native, [(0, 0)]), 2)
    assert native.mock_alive() == 1
    del loop
    assert native.mock_alive() == 0


@needs_headers
@pytest.mark.parametrize(
    ("nodes", "kind", "message"),
    [
        (0, KERNEL, "the graph plain is empty"),
        (2, HOST, "the graph plain holds a host function, which cannot run in a device-side loop"),
        (1, ALLOCATION, "the graph plain holds a memory allocation .*cudaMallocAsync"),
    ],
)
def test_steps_that_cannot_loop(native, nodes, kind, message):
    plain = Captured(native, b"plain", nodes, kind)
    with pytest.raises(RuntimeError, match=message):
        DeviceLoop(Captured(native, b"commit"), plain, script(native, [(1, 0)]), 2)
    assert native.mock_alive() == 0


@needs_headers
def test_bad_arguments(native):
    control = script(native, [(1, 0)])
    graph = Captured(native, b"step")
    with pytest.raises(ValueError, match="max_steps must be from 1"):
        DeviceLoop(graph, graph, control, 0)
    with pytest.raises(ValueError, match="control must be int32"):
        DeviceLoop(graph, graph, control.long(), 1)
    with pytest.raises(ValueError, match="control must be int32"):
        DeviceLoop(graph, graph, control[:2], 1)
    with pytest.raises(RuntimeError, match="must not be null"):
        DeviceLoop(graph, 0, control, 1)
    native.mock_reset(ctypes.c_uint64(1), OLD, -1)
    assert "12.3" in device_loop.why_unsupported()
    with pytest.raises(RuntimeError, match="CUDA 12"):
        DeviceLoop(graph, graph, control, 1)


def test_control_must_be_on_a_gpu():
    with pytest.raises(ValueError, match="control must be on a GPU, got cpu"):
        DeviceLoop(1, 1, torch.zeros(ops.CONTROL_WORDS, dtype=torch.int32), 1)


def test_no_build(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    for content, message in ((None, "is missing: build it"), (b"text", "cannot be loaded")):
        library = tmp_path / f"{content}.so"
        if content:
            library.write_bytes(content)
        monkeypatch.setattr(device_loop, "_LIBRARY", library)
        assert message in device_loop.why_unsupported()
        with pytest.raises(RuntimeError, match=message):
            DeviceLoop(1, 1, torch.zeros(ops.CONTROL_WORDS, dtype=torch.int32), 1)


def test_build_without_cuda(monkeypatch, tmp_path):
    (tmp_path / "empty.c").write_text("")
    subprocess.run(["cc", "-shared", "-fPIC", tmp_path / "empty.c", "-o", tmp_path / "_C.so"], check=True)
    monkeypatch.setattr(device_loop, "_LIBRARY", tmp_path / "_C.so")
    assert device_loop.why_unsupported() == "this build has no CUDA kernels"


@pytest.mark.skipif(bool(reason := device_loop.why_unsupported()), reason=reason or "")
@pytest.mark.parametrize("max_steps", [3, 100])
def test_on_a_gpu(max_steps):
    """Two captured steps that note which of them ran and take the next control from a table."""
    states = [(1, 0), (1, 1), (1, 1), (1, 0), (1, 1), (0, 1), (0, 0)]
    table = torch.tensor(states, dtype=torch.int32, device="cuda")
    control = torch.tensor([1, 0, -77, 0], dtype=torch.int32, device="cuda")
    at = torch.zeros(1, dtype=torch.int64, device="cuda")
    ran = torch.zeros(len(states), dtype=torch.int32, device="cuda")

    def step(kind: int):
        ran.index_fill_(0, at, kind)
        at.add_(1)
        control[:2].copy_(table.index_select(0, at)[0])

    def captured(kind: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph):
            step(kind)
        return graph

    step(3)  # whatever CUDA loads at the first use
    ran.zero_(), at.zero_(), control.copy_(torch.tensor([1, 0, -77, 0], dtype=torch.int32))
    loop = DeviceLoop(captured(2), captured(1), control, max_steps)
    counts = []
    for _ in range(3):
        loop.launch()
        torch.cuda.synchronize()
        counts.append(int(control[2]))
    loop.close()
    assert ran.tolist() == [1, 2, 2, 1, 2, 0, 0]
    assert counts == ([3, 2, 0] if max_steps == 3 else [5, 0, 0])
