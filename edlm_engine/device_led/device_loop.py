"""Denoising steps that follow each other on the GPU without the host: one CUDA graph around two captured
steps."""

import ctypes
import weakref
from pathlib import Path

import torch
from torch import Tensor

from ..ops import CONTROL_WORDS

_LIBRARY = Path(__file__).parents[1] / "_C.so"


def why_unsupported() -> str | None:
    """Why there can be no DeviceLoop here (no build, no CUDA in it, a toolkit or driver before CUDA 12.4);
    None if there can."""
    try:
        return _said(_library().edlm_loop_unsupported())
    except RuntimeError as error:
        return str(error)


class DeviceLoop:
    """A loop of denoising steps as one CUDA graph.

    with_commit, plain: the step with and without the clean rows of finished blocks, each a
    torch.cuda.CUDAGraph(keep_graph=True) after its capture, or a cudaGraph_t as an int. They are copied, but
    the memory that they were captured with must stay: torch's graphs are kept until close(), and whoever
    passes ints sees to it. Their nodes may be kernels, copies, fills and child graphs of one GPU; what
    torch's cudaMallocAsync allocator adds is none of these.
    control: int32 [ops.CONTROL_WORDS] on that GPU: go_on, commit, steps, snapshots, and more. The last kernel
        of both steps writes all but steps: whether there is another step, and whether it is the one with
        clean rows. `steps` counts those of a launch. What the two are before a launch decides about its first
        step; with go_on = 0 there is none.
    max_steps: of one launch.
    Raises RuntimeError where why_unsupported() gives a reason, and with CUDA's message. Not thread-safe.
    """

    def __init__(
        self,
        with_commit: "torch.cuda.CUDAGraph | int",
        plain: "torch.cuda.CUDAGraph | int",
        control: Tensor,
        max_steps: int,
    ):
        _check(control, max_steps)
        library = _library()
        loop = ctypes.c_void_p()
        with torch.cuda.device_of(control):
            error = library.edlm_loop_create(
                _raw(with_commit), _raw(plain), control.data_ptr(), max_steps, ctypes.byref(loop)
            )
        _raise(error)
        self._loop, self._launch = loop, library.edlm_loop_launch
        self._used = (with_commit, plain, control)
        self._destroy = weakref.finalize(self, library.edlm_loop_destroy, loop)
        self._destroy.atexit = False  # CUDA may be gone by then

    def launch(self, stream: "torch.cuda.Stream | int | None" = None) -> None:
        """Queue one run, behind this loop's earlier runs, on a stream (None: torch's current one; an int: a
        cudaStream_t)."""
        if not self._destroy.alive:
            raise RuntimeError("the loop is closed")
        control = self._used[2]
        if stream is None:
            stream = torch.cuda.current_stream(control.device)
        with torch.cuda.device_of(control):
            _raise(self._launch(self._loop, stream if isinstance(stream, int) else stream.cuda_stream))

    def close(self) -> None:
        """Free the graph; may be called again. The runs that were queued must have ended: the steps' memory
        is let go of, too."""
        self._destroy()
        self._used = ()


def _check(control: Tensor, max_steps: int):
    if control.dtype != torch.int32 or control.shape != (CONTROL_WORDS,) or not control.is_contiguous():
        raise ValueError(
            f"control must be int32 [{CONTROL_WORDS}], contiguous, got {control.dtype} {list(control.shape)}"
        )
    if not control.is_cuda:
        raise ValueError(f"control must be on a GPU, got {control.device}")
    if not 1 <= max_steps < 2**31:
        raise ValueError(f"max_steps must be from 1 to 2³¹ - 1, got {max_steps}")


def _library() -> ctypes.CDLL:
    if not _LIBRARY.exists():
        raise RuntimeError(f"{_LIBRARY} is missing: build it with `pip install --no-build-isolation -e .`")
    try:
        library = ctypes.CDLL(str(_LIBRARY))
    except OSError as error:
        raise RuntimeError(f"{_LIBRARY} cannot be loaded: {error}") from error
    if not hasattr(library, "edlm_loop_create"):
        raise RuntimeError("this build has no CUDA kernels")
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    library.edlm_loop_create.argtypes = pointer, pointer, pointer, number, ctypes.POINTER(pointer)
    library.edlm_loop_launch.argtypes = pointer, pointer
    library.edlm_loop_destroy.argtypes = (pointer,)
    library.edlm_loop_destroy.restype = None
    for function in (library.edlm_loop_create, library.edlm_loop_launch, library.edlm_loop_unsupported):
        function.restype = ctypes.c_char_p
    return library


def _raw(graph: "torch.cuda.CUDAGraph | int") -> int:
    return graph if isinstance(graph, int) else graph.raw_cuda_graph()


def _said(message: bytes | None) -> str | None:
    return message.decode(errors="replace") if message else None


def _raise(message: bytes | None):
    if message:
        raise RuntimeError(_said(message))
