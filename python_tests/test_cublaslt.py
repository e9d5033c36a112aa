"""The choice of cuBLASLt's algorithms, with a stand-in for the library that multiplies on the CPU."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from edlm_engine.models import cublaslt
from edlm_engine.models.cublaslt import MOST_ROWS, ProductTuner, agrees, fastest, open_products, searching
from edlm_engine.models.linears import DenseLinear

RIGHT, REFUSED, WRONG, UNUSABLE = range(4)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    built = tmp_path_factory.mktemp("cublaslt") / "mock.so"
    source = Path(__file__).with_name("cublaslt_mock.cpp")
    subprocess.run(["c++", "-std=c++17", "-O1", "-shared", "-fPIC", source, "-o", built], check=True)
    return ctypes.CDLL(str(built))


def behave(library, kinds: list[int], refuse: bool = False):
    library.mock_behave((ctypes.c_int * len(kinds))(*kinds), len(kinds), int(refuse))


class Clock:
    """Seconds for each thing that is measured, in turn; what was measured last was torch's own."""

    def __init__(self, *seconds: float):
        self.left = list(seconds)

    def __call__(self, work) -> float:
        work()
        return self.left.pop(0)


def tuner(library, *seconds: float) -> ProductTuner:
    made = ProductTuner(torch.device("cpu"), library, Clock(*seconds), lambda: 7)
    made.may_search = True
    return made


def operands(rows: int = 5, inputs: int = 12, outputs: int = 9):
    return torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.full((rows, outputs), torch.nan)


def test_the_fastest_that_is_right_is_used_from_then_on(library):
    behave(library, [RIGHT, REFUSED, WRONG, UNUSABLE, RIGHT, RIGHT])
    own = tuner(library, 3.0, 1.0, 2.0, 5.0)  # three that are right, then torch's
    x, weight, out = operands()
    assert own.multiply(x, weight, out) is out
    assert library.mock_last() == 4 and torch.allclose(out, x @ weight.T, atol=1e-5)
    own.may_search = False
    x, weight, out = operands()  # another layer of the same shape: nothing is measured again
    own.multiply(x, weight, out)
    assert library.mock_last() == 4 and torch.allclose(out, x @ weight.T, atol=1e-5)


@pytest.mark.parametrize(
    ("kinds", "seconds", "refuse"),
    [
        ([RIGHT], (0.99, 1.0), False),
        ([WRONG, REFUSED], (1.0,), False),
        ([], (1.0,), False),
        ([RIGHT], (), True),
    ],
    ids=["no clear gain", "none is right", "none is proposed", "the library refuses"],
)
def test_else_torch_multiplies(library, kinds, seconds, refuse):
    behave(library, kinds, refuse)
    own = tuner(library, *seconds)
    x, weight, out = operands()
    own.multiply(x, weight, out)
    behave(library, kinds, refuse)
    own.multiply(x, weight, out.fill_(torch.nan))
    assert library.mock_last() == -1 and torch.allclose(out, x @ weight.T, atol=1e-5)


def test_no_search_while_capturing_nor_for_prompts(library):
    behave(library, [RIGHT])
    own = tuner(library)
    for rows, may_search in ((5, False), (MOST_ROWS + 1, True)):
        x, weight, out = operands(rows)
        own.may_search = may_search
        own.multiply(x, weight, out)
        assert torch.allclose(out, x @ weight.T, atol=1e-5)
    assert library.mock_last() == -1


def test_types_that_the_library_does_not_take(library):
    behave(library, [RIGHT])
    own = tuner(library)
    x, weight, out = (t.bfloat16() for t in operands())  # the stand-in has float32 alone
    own.multiply(x, weight, out)
    assert torch.equal(out, x @ weight.T)


def test_fastest():
    assert fastest([(2.0, "a"), (1.0, "b")], 1.5) == "b"
    assert fastest([(2.0, "a")], 1.5) is None and fastest([], 1.5) is None


def test_agrees():
    want = torch.tensor([1.0, -2.0, torch.nan])
    assert agrees(want * 1.001, want) and not agrees(want + 1, want)
    assert not agrees(torch.full((3,), torch.nan), want)


def test_searching(library):
    own = ProductTuner(torch.device("cpu"), library, Clock(), lambda: 7)
    with pytest.raises(KeyError), searching(own):
        assert own.may_search
        raise KeyError
    assert not own.may_search
    with searching(None):
        assert open_products(torch.device("cpu")) is None


def test_a_dense_layer_multiplies_with_the_products_that_it_is_given(library):
    behave(library, [RIGHT])
    x, weight, out = operands()
    assert torch.allclose(DenseLinear(weight, tuner(library, 1.0, 2.0))(x, out), x @ weight.T, atol=1e-5)
    assert library.mock_last() == 0


def test_missing_library(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "0.0")
    with pytest.raises(OSError):
        cublaslt.loaded_library()
