"""The conversion's loss against an independent computation, and its gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from convert_tools import MASK, QUICK, tiny_decoder

from edlm_engine.convert.data import Rows
from edlm_engine.convert.loss import Batch, diffusion_loss, noisy_batch
from edlm_engine.convert.masking import draw_masks


def random_rows(config):
    rng = np.random.default_rng(5)
    shape = (config.rows, config.length)
    starts = np.zeros(shape, bool)
    starts[:, [0, 3, 9]] = True
    return Rows(rng.integers(2, 10, shape, np.int32), rng.random(shape), starts)


def random_batch(config):
    return noisy_batch(random_rows(config), config, torch.Generator().manual_seed(5))


def loss_by_blocks(model, config, batch):
    """Eq. 1 computed one block at a time as a decoder would: clean earlier blocks, then the noisy one."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(config.rows):
        ids, blocks, masked = batch.ids[row], batch.blocks[row], batch.masked[row, 0]
        noisy = ids.masked_fill(masked, MASK)
        for number in range(int(blocks.max()) + 1):
            context = torch.where(blocks == number, noisy, ids)[blocks <= number]
            if config.attention == "no_clean_context":
                context = noisy[blocks <= number]
            if config.attention == "bidirectional":
                context = noisy
            seen = blocks[: len(context)]
            allow = seen[:, None] >= seen[None, :]
            if config.attention == "bidirectional":
                allow = torch.ones_like(allow)
            log_p = model(context[None], None, allow)[0].double().log_softmax(-1)
            for i in (blocks == number).nonzero()[:, 0].tolist():
                if masked[i] and not (config.token_shift and i == 0):
                    source = log_p[i - 1 if config.token_shift else i]
                    total = total - source[ids[i]] * batch.weights[row, i] / batch.level[row, 0, i].double()
    return total / batch.weights.sum()


@pytest.mark.parametrize("attention", ["block_diff", "no_clean_context", "bidirectional"])
@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("align_blocks", [False, True])
def test_loss_is_the_papers_sum_over_blocks(attention, token_shift, align_blocks):
    settings = {"attention": attention, "token_shift": token_shift, "align_blocks": align_blocks}
    config = replace(QUICK, length=11, half_life_ratio=0.25, **settings)
    model, batch = tiny_decoder(torch.float64), random_batch(config)
    assert batch.blocks[0].tolist() == (
        [0] * 3 + [1] * 4 + [2] * 2 + [3] * 2 if align_blocks else [0] * 4 + [1] * 4 + [2] * 3
    )
    found = diffusion_loss(model.hidden, model.head_weight, batch, MASK, config)
    expected = loss_by_blocks(model, config, batch)
    assert batch.masked.any() and expected > 1
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_loss_of_views_is_the_mean_of_their_losses():
    """Each view alone, as a whole noisy row that is clean and unweighted outside the noised blocks."""
    config = replace(QUICK, length=16, align_blocks=True, views=3, noisy_length=8)
    rows = random_rows(config)
    rows.weights[:] = 0.25
    rows.weights[0, [4, 10]] = rows.weights[1, 5] = 1.0
    batch = noisy_batch(rows, config, torch.Generator().manual_seed(5))
    assert batch.slots[0].tolist() == [3, 4, 5, 6, 9, 10, 11, 12] and (batch.slots[1, 4:] == -1).all()
    assert not batch.masked[1, :, 4:].any()
    model = tiny_decoder(torch.float64)
    found = diffusion_loss(model.hidden, model.head_weight, batch, MASK, config)
    noised = torch.zeros_like(batch.blocks, dtype=torch.bool)
    noised[batch.slots.ge(0).nonzero(as_tuple=True)[0], batch.slots[batch.slots >= 0]] = True
    expected = 0.0
    for view in range(3):
        masked, level = torch.zeros_like(noised), torch.ones(noised.shape)
        masked[noised] = batch.masked[:, view][batch.slots >= 0]
        level[noised] = batch.level[:, view][batch.slots >= 0]
        weights, slots = batch.weights * noised, torch.arange(16).expand_as(noised)
        single = Batch(batch.ids, weights, batch.blocks, slots, masked[:, None], level[:, None])
        plain = replace(config, views=1, noisy_length=None)
        expected += diffusion_loss(model.hidden, model.head_weight, single, MASK, plain).item() / 3
    assert batch.masked.any() and found.item() == pytest.approx(expected, rel=1e-6)


def test_one_noise_level_for_the_row_when_asked():
    level = random_batch(replace(QUICK, sequence_noise=True)).level
    assert (level == level[..., :1]).all() and level[0, 0, 0] != level[1, 0, 0]


@pytest.mark.parametrize("sequence_noise", [False, True])
def test_the_noise_of_a_row_is_that_of_a_block_as_long_as_it(sequence_noise):
    """How fast chances rise with the position is a share of the block, or of the row."""
    config = replace(QUICK, sequence_noise=sequence_noise, half_life_ratio=0.25, min_level=0.2)
    batch = random_batch(config)
    blocks = torch.zeros_like(batch.blocks) if sequence_noise else batch.blocks
    block = 12 if sequence_noise else 4
    masked, level = draw_masks(blocks, block, 0.25, torch.Generator().manual_seed(5), 0.2)
    assert torch.equal(batch.masked[:, 0], masked) and torch.equal(batch.level[:, 0], level)


def test_gradients_agree_with_finite_differences():
    model, batch = tiny_decoder(torch.float64), random_batch(QUICK)
    batch = replace(batch, level=batch.level.double())

    def loss():
        return diffusion_loss(model.hidden, model.head_weight, batch, MASK, QUICK)

    loss().backward()
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", "model.norm.weight"):
        weight = model.get_parameter(name)
        index = (MASK, 3) if weight.dim() == 2 else (3,)
        step = 1e-5
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                weight[index] += sign * step
                values.append(loss().item())
                weight[index] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert abs(slope) > 1e-5
        assert weight.grad[index].item() == pytest.approx(slope, rel=1e-4)


def test_each_masked_token_weighs_one_over_its_level():
    model, batch = tiny_decoder(), random_batch(QUICK)
    only = torch.zeros_like(batch.masked)
    only[tuple(batch.masked.nonzero()[0])] = True

    def loss(**changes):
        changed = replace(batch, masked=only, **changes)
        return diffusion_loss(model.hidden, model.head_weight, changed, MASK, QUICK).item()

    assert loss(level=batch.level / 2) == pytest.approx(2 * loss(), rel=1e-5)
    assert loss(weights=batch.weights * 3) == pytest.approx(loss(), rel=1e-5)
