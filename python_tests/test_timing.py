"""Which layer a GPU's times speak for, and what make_linear does with that."""

import pytest
import torch
from op_cases import assert_close, tensor

from edlm_engine import packing
from edlm_engine.models import linears as layers
from edlm_engine.models.timing import ROWS, packed_wins


@pytest.mark.parametrize(
    ("packed", "dense", "wins"),
    [
        ([0.9, 0.9, 0.9], [1.0, 1.0, 1.0], True),
        ([0.91, 0.91, 0.91], [1.0, 1.0, 1.0], False),  # less than 10 %
        ([0.5, 0.99, 0.99], [1.0, 1.0, 1.0], True),
        ([0.5, 0.5, 1.01], [1.0, 1.0, 1.0], False),  # never slower
        ([4.0, 40.0, 400.0], [5.0, 50.0, 500.0], True),  # whatever the unit
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], False),
        ([0.8, float("nan"), 0.8], [1.0, 1.0, 1.0], False),
    ],
)
def test_packed_wins(packed, dense, wins):
    assert len(packed) == len(ROWS)
    assert packed_wins(packed, dense) == wins


def fake_times(monkeypatch, packed: float, dense: float) -> list:
    """Pretends that the CPU is a GPU with these times; returns the layers that were timed."""
    timed = []

    def time_on_gpu(layer, weight):
        timed.append(type(layer))
        return [packed if isinstance(layer, layers.PackedLinear) else dense] * len(ROWS)

    monkeypatch.setattr(packing, "on_gpu", lambda device: True)
    monkeypatch.setattr(layers, "time_on_gpu", time_on_gpu)
    return timed


@pytest.mark.parametrize(
    ("packed", "dense", "chosen"), [(1.0, 2.0, layers.PackedLinear), (1.0, 1.0, layers.DenseLinear)]
)
def test_every_shape_is_measured_once(monkeypatch, packed, dense, chosen):
    timed, choices = fake_times(monkeypatch, packed, dense), layers.GpuChoices()
    for shape in ((48, 64), (48, 64), (64, 48)):
        layer = layers._fastest_on_gpu(torch.zeros(shape, dtype=torch.float16), choices)
        assert type(layer) is chosen
    assert timed == [layers.PackedLinear, layers.DenseLinear] * 2
    assert len(choices.packed_won) == 2


def test_float32_is_not_measured(monkeypatch):
    timed = fake_times(monkeypatch, 1.0, 2.0)
    assert isinstance(layers._fastest_on_gpu(torch.zeros(48, 64), layers.GpuChoices()), layers.DenseLinear)
    assert timed == []


def test_many_rows_go_through_an_unpacked_weight(monkeypatch):
    fake_times(monkeypatch, 1.0, 2.0)
    weight, x = tensor((70, 66), torch.bfloat16, 0), tensor((layers.MANY_ROWS, 66), torch.bfloat16, 1)
    out = layers.PackedLinear(weight)(x, torch.empty(len(x), 70, dtype=torch.bfloat16))
    assert_close(out, x.double() @ weight.double().T, 2**-7, 1e-2)


def test_buffers_of_a_gpu_outlive_their_growth(monkeypatch):
    """A captured graph goes on writing to them."""
    monkeypatch.setattr(packing, "on_gpu", lambda device: True)
    rows = layers.QuantizedRows(8, rows=4)
    first = rows.quantize(torch.ones(4, 8))[0].data_ptr()
    assert rows.quantize(torch.ones(3, 8))[0].data_ptr() == first
    rows.quantize(torch.ones(5, 8))
    assert [q.data_ptr() for q, _ in rows._outgrown] == [first]
