"""The conversion's loss against an independent computation, its gradients, resuming, and the folder it
writes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from edlm_engine.convert import ConversionConfig, convert
from edlm_engine.convert.checkpoint import load_decoder, save_checkpoint
from edlm_engine.convert.conversion import Batch, diffusion_loss, noisy_batch
from edlm_engine.convert.data import Batches, Documents, Rows, pack
from edlm_engine.convert.model import Decoder
from edlm_engine.models.families import read_config

VOCABULARY = {"<|endoftext|>": 0, "<|mask|>": 1, **{letter: i + 2 for i, letter in enumerate("abcdefgh")}}
MASK = 1
QUICK = ConversionConfig(
    steps=6,
    rows=2,
    length=12,
    block_size=4,
    learning_rate=1e-3,
    final_learning_rate=1e-4,
    device="cpu",
    bf16=False,
)
BASE_CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 10,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
}


def tiny_decoder(dtype=torch.float32):
    return (
        Decoder(read_config(BASE_CONFIG, "config.json")[0])
        .initialise(torch.Generator().manual_seed(0))
        .to(dtype)
    )


@pytest.fixture
def base(tmp_path):
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"mask_token": "<|mask|>"}')
    save_checkpoint(tmp_path / "base", tiny_decoder(), BASE_CONFIG, tmp_path / "tokenizer", torch.float32)
    return tmp_path / "base"


@pytest.fixture
def data(tmp_path):
    lines = [json.dumps({"prompt": "a b c", "completion": "d e " * (i % 3 + 1)}) for i in range(20)]
    (tmp_path / "data.jsonl").write_text("\n".join([*lines, json.dumps({"text": "f g h"})]) + "\n")
    return tmp_path / "data.jsonl"


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": 0}, "views must be at least 1"),
        ({"noisy_length": 2}, r"noisy_length must be in block_size … length \(4 … 12\)"),
        ({"views": 2, "token_shift": True}, "without token_shift"),
        ({"noisy_length": 8, "attention": "bidirectional"}, "for attention 'block_diff'"),
    ],
)
def test_unfit_views_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **settings)


def test_one_noise_level_for_the_row_when_asked():
    level = random_batch(replace(QUICK, sequence_noise=True)).level
    assert (level == level[..., :1]).all() and level[0, 0, 0] != level[1, 0, 0]


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


def weights_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(base, data, tmp_path, optimizer):
    config = replace(QUICK, optimizer=optimizer, checkpoint_every=4)
    assert convert(base, tmp_path / "whole", data, config)
    assert not convert(base, tmp_path / "parts", data, config, stop_after=3)
    assert not (tmp_path / "parts" / "config.json").exists()
    assert convert(base, tmp_path / "parts", data, config)
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    start = weights_of(base)
    assert not any(torch.equal(whole[name].float(), start[name]) for name in whole if "_proj" in name)


def test_a_state_of_other_settings_is_refused(base, data, tmp_path):
    convert(base, tmp_path / "out", data, QUICK, stop_after=1)
    with pytest.raises(ValueError, match=r"half_life_ratio=0\.1, not None; delete it to start over"):
        convert(base, tmp_path / "out", data, replace(QUICK, half_life_ratio=None))


def test_the_folder_is_a_checkpoint_that_says_what_it_is(base, data, tmp_path):
    convert(base, tmp_path / "out", data, replace(QUICK, token_shift=True))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted = {
        "architectures": ["EfficientDLM"],
        "model_type": "edlm",
        "mask_token_id": MASK,
        "block_size": 4,
        "dlm_paradigm": "block_diff",
        "dlm_type": "dream",
        "attention_bias": False,
        "qk_norm": True,
        "torch_dtype": "bfloat16",
    }
    assert wanted.items() <= config.items()
    kept = {name: value for name, value in BASE_CONFIG.items() if name not in wanted}
    assert kept.items() <= config.items()
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert load_decoder(tmp_path / "out")[0].config == load_decoder(base)[0].config
    with pytest.raises(FileExistsError, match="already holds a checkpoint"):
        convert(base, tmp_path / "out", data, QUICK)


def test_conversion_learns_to_fill_masks(base, data, tmp_path):
    losses = {}
    for steps in (1, 120):
        config = replace(QUICK, steps=steps, rows=8, learning_rate=1e-2)
        convert(base, tmp_path / str(steps), data, config)
        model, _ = load_decoder(tmp_path / str(steps))
        ids = torch.tensor([[2, 3, 4, 5, 6, 0, 2, 3, 4, 5, 6, 0]] * 2)
        slots = torch.arange(12).expand(2, 12)
        blocks = slots // 4
        masked = (blocks == 1)[:, None]
        batch = Batch(ids, torch.ones(2, 12), blocks, slots, masked, torch.ones(masked.shape))
        losses[steps] = diffusion_loss(model.hidden, model.head_weight, batch, MASK, QUICK).item()
    assert losses[120] < 0.75 * losses[1]


def test_flat_token_arrays_are_data_too(base, tmp_path):
    np.save(tmp_path / "ids.npy", np.array([2, 3, 4, 0] * 30, np.uint16))
    assert convert(base, tmp_path / "out", tmp_path / "ids.npy", replace(QUICK, steps=1))
    np.save(tmp_path / "ids.npy", np.array([2, 3, 10, 0], np.uint16))
    with pytest.raises(
        ValueError, match=r"ids\.npy: token id 10 \(token 2\) is outside the vocabulary of 10"
    ):
        convert(base, tmp_path / "other", tmp_path / "ids.npy", QUICK)


def test_bad_input_is_refused_before_training(base, data, tmp_path):
    with pytest.raises(FileNotFoundError, match="no training data"):
        convert(base, tmp_path / "out", tmp_path / "none.jsonl", QUICK)
    data.write_text('{"text": "a"}\n{"prompt": "a"}\n')
    with pytest.raises(ValueError, match=r"data\.jsonl, line 2: expected"):
        convert(base, tmp_path / "out", data, QUICK)
    with pytest.raises(ValueError, match="mask_token_id 99 is outside the vocabulary"):
        convert(base, tmp_path / "out", data, replace(QUICK, mask_token_id=99))
    (base / "tokenizer_config.json").write_text('{"mask_token": "<none>"}')
    with pytest.raises(ValueError, match="the tokenizer names no mask token; pass mask_token_id"):
        convert(base, tmp_path / "out", data, QUICK)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("block_size", 13),
        ("half_life_ratio", 0.0),
        ("attention", "causal"),
        ("optimizer", "sgd"),
        ("prompt_weight", 2.0),
        ("min_level", 0.0),
        ("final_learning_rate", 1.0),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        replace(QUICK, **{field: value})


def test_packed_rows_are_whole_documents_with_completions_marked():
    ids = np.arange(30, dtype=np.int32)
    documents = Documents(ids, np.array([0, 7, 12, 18, 30]), np.array([3, 2, 0, 5], np.int32))
    rows = pack(documents, 10, seed=0, epoch=0, prompt_weight=0.25)
    assert rows.ids.shape == rows.weights.shape == rows.starts.shape and rows.ids.shape in ((2, 10), (3, 10))
    begins, completions = {0, 7, 12, 18, 28}, {3, 9, 23}  # the document of twelve tokens is cut into rows
    assert set(rows.ids[:, 0].tolist()) <= begins
    assert set(rows.ids[rows.starts].tolist()) <= completions
    for row in range(len(rows.ids)):
        for at, token in enumerate(rows.ids[row].tolist()):
            in_prompt = token < 3 or 7 <= token < 9 or 18 <= token < 23
            assert rows.weights[row, at] == (0.25 if in_prompt else 1.0)
            assert at == 0 or token == rows.ids[row, at - 1] + 1 or token in begins
    assert (pack(documents, 10, 0, 0, 0.25).ids == rows.ids).all()
    assert any((pack(documents, 10, 0, epoch, 0.25).ids != rows.ids).any() for epoch in range(1, 6))


def test_batches_depend_on_the_step_alone():
    documents = Documents(np.arange(100, dtype=np.int32), np.arange(0, 101, 10), np.zeros(10, np.int32))
    forward, again = (Batches(documents, 20, 2, seed=3, prompt_weight=1.0) for _ in range(2))
    seen = [forward(step).ids for step in range(6)]
    assert all((again(step).ids == seen[step]).all() for step in (5, 0, 3))
