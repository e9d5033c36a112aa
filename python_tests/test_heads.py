"""Heads: the same statistics from a dense and from a quantised matrix."""

import pytest
import torch

from edlm_engine import ops, policies
from edlm_engine.models.heads import Head, QuantizedHead
from edlm_engine.models.linears import QuantizedRows
from edlm_engine.models.quantization import quantize_weight
from edlm_engine.steps.block_state import BlockState


def statistics(head, hidden: torch.Tensor, forbidden: int) -> tuple[torch.Tensor, torch.Tensor]:
    state = BlockState(1, 4, None)
    state.begin_request(0, policies.Threshold())
    ids = torch.zeros(len(hidden), len(ops.ID_COLUMNS), dtype=torch.int32)
    stats = torch.zeros(len(hidden), len(ops.STAT_COLUMNS))
    slots, positions = torch.zeros(2, len(hidden), dtype=torch.int32)
    head.row_stats(hidden, state.records, slots, positions, forbidden, ids, stats)
    return ids, stats


@pytest.mark.parametrize("vocab", (31, 32, 33, 70))
def test_every_logit_below_zero(vocab):
    """What fills up the last panel of a quantised head has logits of 0, and must not count as words."""
    generator = torch.Generator().manual_seed(vocab)
    weight = -torch.rand(vocab, 16, generator=generator) - 0.5
    hidden = torch.rand(3, 16, generator=generator) + 0.5
    quantized = quantize_weight(weight)
    exact = Head(quantized.values.float() * quantized.scale[:, None])
    likely = int((hidden @ weight.T).argmax(1)[0])
    for forbidden in (-1, likely):
        ids, stats = statistics(QuantizedHead(quantized, QuantizedRows(16)), hidden, forbidden)
        want_ids, want_stats = statistics(exact, hidden, forbidden)
        assert ids.max() < vocab and (ids != forbidden).all()
        assert (stats - want_stats).abs().max() <= 0.05
        column = ops.STAT_COLUMNS["log_sum_exp"]
        assert stats[:, column].max() < 0
        assert (ids == want_ids).float().mean() > 0.6  # where two are close, the rounding decides


def test_dense_head_is_the_matrix_itself():
    weight = torch.eye(4)
    head = Head(weight)
    assert head.weight is weight
    ids, _ = statistics(head, torch.eye(4)[[2, 0, 3]], -1)
    assert ids[:, 0].tolist() == [2, 0, 3]
