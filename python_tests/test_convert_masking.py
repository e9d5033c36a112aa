"""The training mask and the masking distribution against their formulas."""

import math

import pytest
import torch

from edlm_engine.convert.masking import (
    causal_block_mask,
    draw_masks,
    noisy_slots,
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
    mask = whole_mask(regular(1, length, block))[0]
    expected = [[allowed(q, k, length, block) for k in range(2 * length)] for q in range(2 * length)]
    assert mask.tolist() == expected


def test_rows_that_stand_for_no_token_are_seen_by_none():
    blocks, slots = regular(1, 6, 3), torch.tensor([[0, 1, 2, -1]])
    noisy, _ = training_mask(blocks, slots)
    assert not noisy[0, :3, 3].any() and noisy[0, :3, :3].all()
    assert not noisy[0, 3, :3].any() and not noisy[0, 3, 4:].any()


def whole_mask(blocks):
    """The mask of [noisy | clean] rows as one square."""
    rows, length = blocks.shape
    noisy, clean = training_mask(blocks, torch.arange(length).expand_as(blocks))
    clean = torch.cat((torch.zeros(rows, length, length, dtype=torch.bool), clean), -1)
    return torch.cat((noisy, clean), 1)


def regular(rows, length, block):
    starts = torch.zeros(rows, length, dtype=torch.bool)
    starts[:, 0] = True
    return number_blocks(starts, block)


def test_mask_without_clean_context_for_all_pairs():
    expected = [[k // 4 <= q // 4 for k in range(10)] for q in range(10)]
    assert causal_block_mask(regular(1, 10, 4))[0].tolist() == expected


def test_blocks_are_counted_from_every_start():
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[0, [5, 7]] = True
    assert number_blocks(starts, 4).tolist() == [
        [0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4],
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2],
    ]
    mask = whole_mask(number_blocks(starts, 4))
    numbers = number_blocks(starts, 4)[0].tolist()
    for query in range(12):
        assert mask[0, query, 12:].tolist() == [number < numbers[query] for number in numbers]


def test_only_whole_blocks_with_learned_tokens_are_noised_as_far_as_they_fit():
    blocks = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 3, 3], [0, 1, 1, 1, 1, 2, 2, 2, 2, 3]])
    learned = torch.zeros(2, 10, dtype=torch.bool)
    learned[0, [4, 8]] = True
    learned[1, [1, 2, 6, 9]] = True
    assert noisy_slots(blocks, learned, 6).tolist() == [[3, 4, 5, 8, 9, -1], [1, 2, 3, 4, -1, -1]]
    assert noisy_slots(blocks, learned, 9)[1].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert noisy_slots(blocks, learned, 4).tolist() == [[3, 4, 5, -1], [1, 2, 3, 4]]


def test_rows_of_some_slots_see_what_they_see_among_all():
    blocks = regular(1, 12, 4)
    slots = torch.tensor([[4, 5, 6, 7, 8, 9, 10, 11, -1, -1]])
    noisy, clean = training_mask(blocks, slots)
    whole = whole_mask(blocks)[0]
    columns = [*range(4, 12), *range(12, 24)]
    assert torch.equal(noisy[0, :8][:, [*range(8), *range(10, 22)]], whole[4:12][:, columns])
    assert not noisy[0, :8, 8:10].any() and noisy[0, 8:, 8:10].all()  # padding sees padding: no row is empty
    assert torch.equal(clean[0], whole[12:, 12:])


def test_rows_have_one_view_by_default():
    blocks = regular(3, 8, 4)
    default, one = (
        draw_masks(blocks, 4, None, torch.Generator().manual_seed(1), **v) for v in ({}, {"views": 1})
    )
    assert all(torch.equal(a, b) for a, b in zip(default, one, strict=True))


def test_views_of_a_row_share_its_blocks_and_spread_their_levels():
    blocks = regular(300, 24, 8).repeat_interleave(4, 0)
    masked, level = draw_masks(blocks, 8, None, torch.Generator().manual_seed(4), 1e-6, views=4)
    for start in (0, 8, 16):
        levels = level[:, start].reshape(300, 4).sort(1).values
        assert torch.allclose(levels.diff(dim=1), torch.tensor(0.25), atol=1e-5)
        assert 0.48 < levels.mean() < 0.52
        assert torch.equal(masked[:, start : start + 8].sum(1), torch.round(level[:, start] * 8).long())


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


def test_a_single_mask_falls_by_the_weights():
    """Gumbel-max: of one draw, each position's chance is its share of the row's weights."""
    block, rows = 8, 60_000
    masked, level = draw_masks(regular(rows, block, block), block, 0.25, torch.Generator().manual_seed(6))
    masked, level = masked[masked.sum(1) == 1], level[masked.sum(1) == 1, :1]
    assert len(masked) > 5000 and level.min() > 0.06 and level.max() < 0.19
    weights = (math.log(2) / (0.25 * block) * (1 - level) * torch.arange(block)).exp()
    expected = (weights / weights.sum(1, keepdim=True)).mean(0)
    error = (expected * (1 - expected) / len(masked)).sqrt()
    assert ((masked.double().mean(0) - expected).abs() < 4.5 * error).all()


def test_levels_are_uniform_from_the_smallest_one_on():
    for smallest in (1e-3, 0.4, 0.9):
        _, level = draw_masks(regular(4000, 8, 4), 4, None, torch.Generator().manual_seed(7), smallest)
        level = (level[:, ::4].flatten().double() - smallest) / (1 - smallest)
        assert level.min() >= 0 and level.max() < 1 + 1e-6
        for share in (0.1, 0.5, 0.9):
            assert abs((level < share).double().mean() - share) < 0.03
    _, level = draw_masks(regular(500, 8, 4), 4, None, torch.Generator().manual_seed(7), 0.5, views=2)
    assert level.min() >= 0.5 and level.max() <= 1  # views wrap around inside of the range


def test_small_lambda_masks_from_the_right():
    masked, level = draw_masks(regular(20_000, 16, 16), 16, 0.1, torch.Generator().manual_seed(3))
    few = masked[level[:, 0] < 0.3].double().mean(0)
    assert few[15] > 3 * few.mean() and few[0] < 0.05 * few.mean()
    uniform, level = draw_masks(regular(20_000, 16, 16), 16, None, torch.Generator().manual_seed(3))
    assert abs(uniform[:, 0].double().mean() - uniform[:, 15].double().mean()) < 0.02
