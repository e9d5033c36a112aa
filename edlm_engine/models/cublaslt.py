"""cuBLASLt's fastest algorithm for each shape of a product, found by trying: its first guess is often not the
best where a few rows meet a large matrix.

Through the library that torch has loaded, by ctypes: steps call it only while their graph is captured, so
that the overhead is of no account. Source: NVIDIA, cuBLAS documentation, "Using the cuBLASLt API".
"""

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from .timing import cold_ms

ALGORITHMS = 16  # tried for a shape
MOST_ROWS = 256  # more are a prompt's, of any number: not worth a search each
CLEARLY = 0.97  # of the time of torch's own choice: less of a gain may be noise
_WORKSPACE = 32 << 20  # bytes, as torch's own

# cublasLt.h and library_types.h
_COMPUTE_32F, _R_32F, _TRANSPOSE_A, _MAX_WORKSPACE, _TRANSPOSED = 68, 0, 3, 1, 1
_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}


class _Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t; state: 0 if the rest is valid."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int),
        ("waves", ctypes.c_float), ("reserved", ctypes.c_int * 4),
    )  # fmt: skip


def loaded_library() -> ctypes.CDLL:
    """torch's. Raises OSError where there is none."""
    major = (torch.version.cuda or "0").split(".")[0]
    return ctypes.CDLL(f"libcublasLt.so.{major}")


class _Product:
    """The descriptions of out [rows, outputs] = x [rows, inputs] wᵀ, which is columns first outᵀ = w xᵀ."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype, rows: int, inputs: int, outputs: int):
        self._library, kind = library, _TYPES[dtype]
        self.operation = self._make("MatmulDesc", _COMPUTE_32F, _R_32F)
        transposed = ctypes.c_int(_TRANSPOSED)
        self._call(
            "MatmulDescSetAttribute",
            self.operation,
            _TRANSPOSE_A,
            ctypes.byref(transposed),
            ctypes.c_size_t(4),
        )
        self.weight, self.x, self.out = (
            self._make(
                "MatrixLayout", kind, ctypes.c_uint64(height), ctypes.c_uint64(width), ctypes.c_int64(height)
            )
            for height, width in ((inputs, outputs), (inputs, rows), (outputs, rows))
        )

    def algorithms(self, handle: ctypes.c_void_p) -> list[_Found]:
        """What the library proposes, best guess first. Raises RuntimeError."""
        preference = self._make("MatmulPreference")
        most = ctypes.c_uint64(_WORKSPACE)
        self._call(
            "MatmulPreferenceSetAttribute", preference, _MAX_WORKSPACE, ctypes.byref(most), ctypes.c_size_t(8)
        )
        found, count = (_Found * ALGORITHMS)(), ctypes.c_int()
        self._call(
            "MatmulAlgoGetHeuristic", handle, self.operation, self.weight, self.x, self.out, self.out,
            preference, ALGORITHMS, found, ctypes.byref(count),
        )  # fmt: skip
        self._call("MatmulPreferenceDestroy", preference)
        return [one for one in found[: count.value] if one.state == 0 and one.workspace <= _WORKSPACE]

    def run(self, handle, algorithm: _Found, weight: int, x: int, out: int, workspace: int, stream: int):
        """The rest are addresses, and the stream's."""
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        pointer = ctypes.c_void_p
        self._call(
            "Matmul", handle, self.operation, ctypes.byref(one), pointer(weight), self.weight, pointer(x),
            self.x, ctypes.byref(zero), pointer(out), self.out, pointer(out), self.out,
            ctypes.byref(algorithm, _Found.algorithm.offset), pointer(workspace), ctypes.c_size_t(_WORKSPACE),
            pointer(stream),
        )  # fmt: skip

    def _make(self, kind: str, *arguments) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self._call(f"{kind}Create", ctypes.byref(made), *arguments)
        return made

    def _call(self, name: str, *arguments):
        call(self._library, name, *arguments)


def call(library: ctypes.CDLL, name: str, *arguments):
    """cublasLt<name>(arguments). Raises RuntimeError with its status."""
    status = getattr(library, f"cublasLt{name}")(*arguments)
    if status:
        raise RuntimeError(f"cublasLt{name} failed with status {status}")


class ProductTuner:
    """Chooses for every shape once; shared by the layers of a model.

    may_search: whether a new shape is searched, which takes some hundred milliseconds and must not happen
    while a graph is captured; otherwise torch multiplies it.
    measure(call): its time. stream(): the current one. Both are for tests to replace.
    """

    def __init__(
        self,
        device: torch.device,
        library: ctypes.CDLL,
        measure: Callable[[Callable[[], object]], float] | None = None,
        stream: Callable[[], int] | None = None,
    ):
        self.may_search = False
        self._library = library
        self._handle = ctypes.c_void_p()
        call(library, "Create", ctypes.byref(self._handle))
        self._workspace = torch.empty(_WORKSPACE, dtype=torch.uint8, device=device)
        self._measure = measure or (lambda work: cold_ms(work, device))
        self._stream = stream or (lambda: torch.cuda.current_stream(device).cuda_stream)
        self._chosen: dict[tuple, tuple[_Product, _Found] | None] = {}

    def multiply(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """out = x weightᵀ: T [rows, inputs], [outputs, inputs], [rows, outputs]; returns out."""
        key = (x.dtype, len(x), *weight.shape)
        if key not in self._chosen and self.may_search and len(x) <= MOST_ROWS:
            self._chosen[key] = self._search(x, weight, out)
        chosen = self._chosen.get(key)
        if chosen is None:
            return torch.mm(x, weight.t(), out=out)
        self._run(*chosen, x, weight, out)
        return out

    def _run(self, product: _Product, algorithm: _Found, x, weight, out):
        addresses = (t.data_ptr() for t in (weight, x, out, self._workspace))
        product.run(self._handle, algorithm, *addresses, self._stream())

    def _search(self, x, weight, out) -> tuple[_Product, _Found] | None:
        """The fastest algorithm if it clearly beats torch's choice, and agrees with it; else None."""
        try:
            product = _Product(self._library, x.dtype, len(x), weight.shape[1], len(weight))
            algorithms = product.algorithms(self._handle)
        except RuntimeError:  # a type or shape that the library does not take
            return None
        want = torch.mm(x, weight.t())
        times = []
        for algorithm in algorithms:
            try:
                self._run(product, algorithm, x, weight, out)
            except RuntimeError:
                continue
            if agrees(out, want):
                times.append(
                    (self._measure(lambda a=algorithm: self._run(product, a, x, weight, out)), algorithm)
                )
        own = self._measure(lambda: torch.mm(x, weight.t(), out=out))
        best = fastest(times, CLEARLY * own)
        return None if best is None else (product, best)


def open_products(device: torch.device) -> ProductTuner | None:
    """None where there is no GPU, or no library."""
    if device.type != "cuda":
        return None
    try:
        return ProductTuner(device, loaded_library())
    except (OSError, RuntimeError):
        return None


@contextmanager
def searching(products: ProductTuner | None) -> Iterator[None]:
    """New shapes are searched meanwhile."""
    if products:
        products.may_search = True
    try:
        yield
    finally:
        if products:
            products.may_search = False


def fastest(times: Iterable[tuple[float, _Found]], bound: float) -> _Found | None:
    """The algorithm of the shortest time below `bound`; None if there is none."""
    seconds, best = min(times, key=lambda pair: pair[0], default=(bound, None))
    return best if seconds < bound else None


def agrees(out: torch.Tensor, want: torch.Tensor) -> bool:
    """Whether they differ by roundings at most; NaN in both is alike."""
    scale = want.float().abs().nan_to_num().amax()
    return torch.allclose(out.float(), want.float(), rtol=2e-2, atol=float(2e-2 * scale), equal_nan=True)
