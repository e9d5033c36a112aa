"""The engine against the reference generator, token for token in fp32."""

import json
import random

import pytest
from checkpoints import MASK, TEXT_IDS, config_dict, write_ar_checkpoint, write_checkpoint
from reference import generate as reference
from torch.distributions import Categorical

from edlm_engine import Engine, SamplingParams
from edlm_engine.checkpoints.folder import resolve

SHAPES = ("qwen2", "qwen3")
PREFILLS = ("block_causal", "bidirectional", "causal")
RULES = {
    "threshold": {"threshold": 0.5},
    "low threshold": {"threshold": 0.05},
    "capped threshold": {"threshold": 0.9, "steps_per_block": 3},
    "one per step": {"threshold": None},
    "schedule": {"threshold": None, "steps_per_block": 5},
    "sampled": {"threshold": 0.4, "temperature": 0.8, "seed": 7},
    "filtered": {"threshold": 0.4, "temperature": 1.2, "top_k": 20, "top_p": 0.9, "seed": 8},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {shape: write_checkpoint(root / shape, config_dict(shape)) for shape in SHAPES}


def prompts(count: int, seed=0) -> list[list[int]]:
    """Prompts of lengths on and off block and page borders."""
    rng = random.Random(seed)
    lengths = [1, 16, 5, 33, 64, 70, 130, 15, 128, 3, 17, 40]
    return [[rng.choice(TEXT_IDS) for _ in range(length)] for length in lengths[:count]]


def assert_same(result, expected):
    tokens, confidences, steps, forwards = expected
    assert result.token_ids == tokens
    assert result.commit_steps == steps
    assert result.confidences == pytest.approx(confidences, abs=2e-4)
    assert result.forwards.denoising == forwards


@pytest.mark.parametrize("prefill", PREFILLS)
@pytest.mark.parametrize("block_length", (1, 4, 16, 32))
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_and_prefills(folders, shape, block_length, prefill):
    model = reference.load(folders[shape])
    params = SamplingParams(max_new_tokens=37, threshold=0.5)
    options = {"block_length": block_length, "prefill": prefill}
    with Engine(folders[shape], dtype="float32", **options) as engine:
        for prompt, result in zip(prompts(4), engine.generate(prompts(4), params), strict=True):
            assert_same(result, reference.generate(model, prompt, params, **options))
            assert result.forwards.prefill == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_commit_rules(folders, shape, rule):
    model = reference.load(folders[shape])
    params = SamplingParams(max_new_tokens=50, ignore_eos=True, **RULES[rule])
    with Engine(folders[shape], dtype="float32") as engine:
        for prompt in prompts(6, seed=1):
            result = engine.generate(prompt, params)
            assert_same(result, reference.generate(model, prompt, params))
            assert MASK not in result.token_ids and len(result.token_ids) == 50


def test_batch_of_everything_equals_each_alone(folders):
    """More requests than slots, each with other parameters and lengths; page pool too small for all."""
    rng = random.Random(3)
    every = [
        SamplingParams(max_new_tokens=rng.randint(1, 70), ignore_eos=bool(i % 2), **rule)
        for i, rule in enumerate([*RULES.values(), *RULES.values()][:12])
    ]
    with Engine(folders["qwen3"], dtype="float32", max_batch_size=4, kv_cache_tokens=512) as engine:
        together = engine.generate(prompts(12), every)
        alone = [engine.generate(prompt, params) for prompt, params in zip(prompts(12), every, strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert (a.token_ids, a.commit_steps, a.finish_reason) == (
            b.token_ids,
            b.commit_steps,
            b.finish_reason,
        )


@pytest.mark.parametrize("prefill", ("block_causal", "causal"))
def test_prompt_longer_than_one_forward(folders, prefill, monkeypatch):
    monkeypatch.setattr("edlm_engine.assembly.MAX_PROMPT_ROWS", 48)
    model, prompt = reference.load(folders["qwen3"]), prompts(7)[6]
    params = SamplingParams(max_new_tokens=20, threshold=0.5)
    with Engine(folders["qwen3"], dtype="float32", prefill=prefill) as engine:
        result = engine.generate(prompt, params)
        assert_same(result, reference.generate(model, prompt, params, prefill=prefill))
        assert result.forwards.prefill == 2  # 130 rows in three forwards, the last with the first block


@pytest.mark.parametrize("block_length", (1, 4, 16))
def test_token_shift(tmp_path, block_length):
    folder = write_checkpoint(tmp_path / "dream", config_dict(dlm_type="dream"))
    model, params = reference.load(folder), SamplingParams(max_new_tokens=21, threshold=0.5)
    options = {"block_length": block_length}
    with Engine(folder, dtype="float32", **options) as engine:
        for prompt in prompts(5):
            assert_same(engine.generate(prompt, params), reference.generate(model, prompt, params, **options))


@pytest.mark.parametrize("shape", SHAPES)
def test_autoregressive(tmp_path, shape):
    folder = write_ar_checkpoint(tmp_path / shape, shape)
    model, params = reference.load(folder), SamplingParams(max_new_tokens=30)
    with Engine(folder, dtype="float32") as engine:
        results = engine.generate(prompts(5), params)
        for prompt, result in zip(prompts(5), results, strict=True):
            assert_same(result, reference.generate(model, prompt, params))
            assert result.tokens_per_forward == 1
            tokens = prompt + result.token_ids
            hidden = reference.hidden_states(model, tokens, list(range(1, len(tokens) + 1)))
            predicted = Categorical(logits=hidden[len(prompt) - 1 : -1] @ model.head.T)
            assert result.entropies == pytest.approx(predicted.entropy().tolist(), abs=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_logits_equal_transformers(tmp_path, shape):
    import torch
    import transformers

    folder = write_ar_checkpoint(tmp_path / shape, shape)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = prompts(7)[6]
    with torch.no_grad():
        expected = theirs(torch.tensor([prompt])).logits[0]
    model = reference.load(folder)
    logits = reference.hidden_states(model, prompt, list(range(1, len(prompt) + 1))) @ model.head.T
    assert torch.allclose(logits, expected, atol=2e-4, rtol=1e-4)


def test_sibling_tensor_names(tmp_path, folders):
    config = config_dict("qwen2")
    folder = write_checkpoint(tmp_path / "sibling", config, body="encoder", head="diffusion_head")
    params = SamplingParams(max_new_tokens=24)
    with Engine(folder, dtype="float32") as a, Engine(folders["qwen2"], dtype="float32") as b:
        assert a.generate(prompts(3)[2], params).token_ids == b.generate(prompts(3)[2], params).token_ids


def test_mask_id_in_a_prompt_is_an_ordinary_token(folders):
    model, params = reference.load(folders["qwen3"]), SamplingParams(max_new_tokens=24, threshold=0.5)
    prompt = [5, MASK, 9, MASK, 11]
    with Engine(folders["qwen3"], dtype="float32") as engine:
        result = engine.generate(prompt, params)
    assert result.prompt_token_ids == prompt
    assert_same(result, reference.generate(model, prompt, params))


def test_eos_ends_the_sequence(folders):
    model = reference.load(folders["qwen3"])
    with Engine(folders["qwen3"], dtype="float32") as engine:
        free = engine.generate(prompts(3)[2], max_new_tokens=40, threshold=None, ignore_eos=True)
        stop = free.token_ids[10]
        params = SamplingParams(max_new_tokens=40, threshold=None, stop_token_ids=(stop,), ignore_eos=True)
        result = engine.generate(prompts(3)[2], params)
    assert (
        result.finish_reason == "stop"
        and result.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    )
    assert_same(result, reference.generate(model, prompts(3)[2], params))


@pytest.mark.parametrize("head_dim", (48, 80))
def test_head_sizes_that_are_no_powers_of_two(tmp_path, head_dim):
    folder = write_checkpoint(tmp_path / "model", config_dict("qwen3", head_dim=head_dim))
    model, params = reference.load(folder), SamplingParams(max_new_tokens=37, threshold=0.5)
    with Engine(folder, dtype="float32") as engine:
        for prompt, result in zip(prompts(4), engine.generate(prompts(4), params), strict=True):
            assert_same(result, reference.generate(model, prompt, params))


def test_bf16_agrees_with_the_fp32_reference_where_the_model_is_sure():
    """On a trained model, bf16's rounding moves confidences by a little and these texts not at all."""
    folder = resolve("edlm-tiny")
    model, params = reference.load(folder), SamplingParams(max_new_tokens=96, threshold=None)
    examples = [example["prompt"] for example in json.loads((folder / "examples.json").read_text())]
    with Engine(folder, dtype="bfloat16") as engine:
        assert engine.dtype == "bfloat16"
        for prompt, result in zip(examples, engine.generate(examples, params), strict=True):
            ids = engine.tokenizer.encode(prompt)
            tokens, confidences, _, _ = reference.generate(model, ids, params)
            assert result.token_ids == tokens
            difference = max(abs(a - b) for a, b in zip(result.confidences, confidences, strict=True))
            assert difference <= 0.02
