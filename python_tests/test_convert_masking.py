"""The training mask and the masking distribution against their formulas."""

import math

import pytest
import torch

from edlm_engine.convert.masking import (
    causal_block_mask,
    draw_masks,
    number_blocks,
    position_log_weights,
    training_mask,
)


def allowed(query, key, length, block):
    """The three terms of the paper's mask, one pair at a time (Fig. 2d)."""
    query_noisy, key_noisy = query < length, key < length
    query_block, key_block = query % length // block, key % length // block
    own_block = query_block == key_block and query_noisy == key_noisy
    clean_context = query_noisy and not key_noisy and key_block < query_block
    block_causal = not query_noisy and not key_noisy and key_block <= query_block
    return own_block or clean_context or block_causal


@pytest.mark.parametrize(("length", "block"), [(12, 4), (10, 4), (5, 1), (6, 6), (7, 16)])
def test_training_mask_is_the_formula_for_all_pairs(length, block):
    mask = training_mask(regular(1, length, block))[0]
    expected = [[allowed(q, k, length, block) for k in range(2 * length)] for q in range(2 * length)]
    assert mask.tolist() == expected


def regular(rows, length, block):
    starts = torch.zeros(rows, length, dtype=torch.bool)
    starts[:, 0] = True
    return number_blocks(starts, block)


def test_mask_without_clean_context_for_all_pairs():
    expected = [[k // 4 <= q // 4 for k in range(10)] for q in range(10)]
    assert causal_block_mask(regular(1, 10, 4))[0].tolist() == expected


def test_blocks_are_counted_from_every_start():
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[0, [0, 5, 7]] = True
    starts[1, 0] = True
    assert number_blocks(starts, 4).tolist() == [
        [0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4],
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2],
    ]
    mask = training_mask(number_blocks(starts, 4))
    numbers = number_blocks(starts, 4)[0].tolist()
    for query in range(12):
        assert mask[0, query, 12:].tolist() == [number < numbers[query] for number in numbers]


@pytest.mark.parametrize(("block", "beta", "ratio"), [(64, 0.1083, 919), (16, 0.4332, 664)])
def test_weights_at_lambda_one_tenth(block, beta, ratio):
    at = torch.arange(block)
    weights = position_log_weights(torch.zeros(block), at, block, 0.1)
    assert weights[1].item() == pytest.approx(beta, abs=5e-5)
    assert weights[-1].exp().item() / weights[0].exp().item() == pytest.approx(ratio, abs=1)
    half_way = position_log_weights(torch.full((block,), 0.5), at, block, 0.1)
    assert half_way[-1].item() == pytest.approx(weights[-1].item() / 2, rel=1e-6)


def test_weights_double_over_lambda_of_a_block_and_are_flat_without_lambda():
    four = torch.tensor([4])
    assert position_log_weights(torch.zeros(1), four, 16, 0.25).item() == pytest.approx(math.log(2))
    assert not position_log_weights(torch.zeros(1), four, 16, None).any()


@pytest.mark.parametrize("half_life_ratio", [None, 0.1])
def test_every_block_has_exactly_its_own_number_of_masks(half_life_ratio):
    masked, level = draw_masks(regular(200, 44, 16), 16, half_life_ratio, torch.Generator().manual_seed(1))
    for start, length in ((0, 16), (16, 16), (32, 12)):
        levels = level[:, start : start + length]
        assert (levels == levels[:, :1]).all()
        count = masked[:, start : start + length].sum(1)
        assert torch.equal(count, torch.round(levels[:, 0] * length).long())
    assert not torch.equal(level[:, 0], level[:, 16])
    assert (masked.sum(1) == 0).sum() < 5 and (level > 0).all()


def test_blocks_of_unequal_length_have_their_own_numbers_of_masks():
    starts = torch.rand(50, 60, generator=torch.Generator().manual_seed(1)) < 0.1
    starts[:, 0] = True
    blocks = number_blocks(starts, 8)
    masked, level = draw_masks(blocks, 8, 0.1, torch.Generator().manual_seed(2))
    for row in range(50):
        for number in range(int(blocks[row].max()) + 1):
            inside = blocks[row] == number
            t = level[row, inside]
            assert (t == t[0]).all() and masked[row, inside].sum() == torch.round(t[0] * inside.sum())


def inclusion_probabilities(weights, count):
    """Chance of each item to be among `count` drawn one after the other without replacement, by
    enumeration."""
    chances = [0.0] * len(weights)

    def descend(left, probability, depth):
        if depth == count:
            return
        total = sum(weights[i] for i in left)
        for i in left:
            p = probability * weights[i] / total
            chances[i] += p
            descend([j for j in left if j != i], p, depth + 1)

    descend(list(range(len(weights))), 1.0, 0)
    return chances


@pytest.mark.parametrize("half_life_ratio", [None, 0.25, 0.5])
def test_masked_positions_follow_sampling_without_replacement(half_life_ratio):
    block, rows = 4, 400_000
    masked, level = draw_masks(
        regular(rows, block, block), block, half_life_ratio, torch.Generator().manual_seed(2)
    )
    pick = (level[:, 0] > 0.495) & (level[:, 0] < 0.505)  # t ≈ 0.5, hence two masks
    assert (masked[pick].sum(1) == 2).all()
    beta = 0.0 if half_life_ratio is None else math.log(2) / (half_life_ratio * block)
    expected = inclusion_probabilities([math.exp(beta * 0.5 * i) for i in range(block)], 2)
    found = masked[pick].double().mean(0)
    for position in range(block):
        p = expected[position]
        assert abs(found[position] - p) < 4 * math.sqrt(p * (1 - p) / pick.sum()) + 2e-3


def test_small_lambda_masks_from_the_right():
    masked, level = draw_masks(regular(20_000, 16, 16), 16, 0.1, torch.Generator().manual_seed(3))
    few = masked[level[:, 0] < 0.3].double().mean(0)
    assert few[15] > 3 * few.mean() and few[0] < 0.05 * few.mean()
    uniform, level = draw_masks(regular(20_000, 16, 16), 16, None, torch.Generator().manual_seed(3))
    assert abs(uniform[:, 0].double().mean() - uniform[:, 15].double().mean()) < 0.02
