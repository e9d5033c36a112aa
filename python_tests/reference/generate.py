"""The generation loop again in plain fp32 torch: dense attention over all tokens so far, every step from
scratch, no cache, no commit that rides along with another forward. The ops' twins are in ops.py.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from edlm_engine import ops
from edlm_engine.config import DecodingConfig, ModelConfig
from edlm_engine.models.families import read_config
from edlm_engine.params import SamplingParams
from edlm_engine.steps.block_state import BlockState
from edlm_engine.steps.policies import Statistics

from .ops import rms_norm, rotate, row_stats


@dataclass(frozen=True)
class Model:
    """A checkpoint's weights in fp32 under their Hugging Face names, and its configurations."""

    config: ModelConfig
    decoding: DecodingConfig
    weights: dict[str, torch.Tensor]
    body: str = "model"

    @property
    def head(self) -> torch.Tensor:
        names = (name for name in ("lm_head.weight", "diffusion_head.weight") if name in self.weights)
        embedding = f"{self.body}.embed_tokens.weight"
        return self.weights[embedding if self.config.tied_head else next(names)]


def load(folder) -> Model:
    """Read a checkpoint folder."""
    folder = Path(folder)
    weights = {}
    for path in folder.glob("*.safetensors"):
        weights |= {name: tensor.float() for name, tensor in load_file(path).items()}
    config_path = folder / "config.json"
    config, decoding = read_config(json.loads(config_path.read_text()), config_path, weights)
    body = "encoder" if "encoder.embed_tokens.weight" in weights else "model"
    return Model(config, decoding, weights, body)


def hidden_states(model: Model, tokens: list[int], kv_len: list[int]) -> torch.Tensor:
    """[n, hidden], final-normed: row i, at position i, sees the keys [0, kv_len[i])."""
    config, w, n = model.config, model.weights, len(tokens)
    sees = torch.arange(n)[None, :] < torch.tensor(kv_len)[:, None]
    x = w[f"{model.body}.embed_tokens.weight"][torch.tensor(tokens)]
    for i in range(config.num_layers):
        p = f"{model.body}.layers.{i}."
        x = x + _attention(model, _norm(x, w[p + "input_layernorm.weight"], config), p + "self_attn.", sees)
        y = _norm(x, w[p + "post_attention_layernorm.weight"], config)
        gate, up = _project(w, p + "mlp.gate_proj", y), _project(w, p + "mlp.up_proj", y)
        x = x + _project(w, p + "mlp.down_proj", torch.nn.functional.silu(gate) * up)
    return _norm(x, w[f"{model.body}.norm.weight"], config)


def _norm(x, weight, config):
    return rms_norm(x, None, weight, config.rms_norm_eps)[1]


def _attention(model: Model, x, prefix: str, sees) -> torch.Tensor:
    config, w, n = model.config, model.weights, len(x)

    def heads(name: str, count: int):
        y = _project(w, f"{prefix}{name}_proj", x).view(n, count, config.head_dim)
        if config.qk_norm and name != "v":
            y = _norm(y, w[f"{prefix}{name}_norm.weight"], config)
        return (y if name == "v" else rotate(y, _angles(n, config))).transpose(0, 1)

    group = config.num_heads // config.num_kv_heads
    q, k, v = heads("q", config.num_heads), heads("k", config.num_kv_heads), heads("v", config.num_kv_heads)
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    scores = (q @ k.transpose(1, 2)) * config.head_dim**-0.5
    out = scores.masked_fill(~sees, -torch.inf).softmax(-1) @ v
    return _project(w, f"{prefix}o_proj", out.transpose(0, 1).reshape(n, -1))


def _project(weights: dict, name: str, x) -> torch.Tensor:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def _angles(count: int, config: ModelConfig) -> torch.Tensor:
    """[count, head_dim]: cosines of the RoPE angles at positions 0 … count-1, then their sines."""
    angles = torch.arange(count, dtype=torch.float32)[:, None] * config.rope.frequencies(config.head_dim)
    return torch.cat([angles.cos(), angles.sin()], dim=1) * config.rope.amplitude


def prompt_kv_len(length: int, prefill: str, block_length: int) -> list[int]:
    """How many keys each prompt row sees."""
    if prefill == "bidirectional":
        return [length] * length
    if prefill == "causal":
        return list(range(1, length + 1))
    return [min((i // block_length + 1) * block_length, length) for i in range(length)]


def generate(model: Model, prompt: list[int], params: SamplingParams, **overrides):
    """The family's loop (arXiv 2512.14067, App. A), one block after the other: (token ids up to and with an
    eos or stop id, confidences, commit steps, denoising forwards).

    overrides: fields of DecodingConfig. params.seed must be set if temperature > 0.
    """
    decoding = replace(model.decoding, **overrides)
    size, end = params.block_length or decoding.block_length, len(prompt) + params.max_new_tokens
    start = len(prompt) // size * size if decoding.aligned else len(prompt)
    kv_len = prompt_kv_len(start, decoding.prefill, size)
    tokens, given, confidences, steps, forwards = prompt[:start], prompt[start:], [], [], 0
    stop_ids = {*params.stop_token_ids, *(() if params.ignore_eos else decoding.eos_token_ids)}
    while len(tokens) < end:
        length = min(end - len(tokens), size)
        kv_len += [len(tokens) + length] * length
        block, block_confidences, block_steps, count, kept = _denoise(
            model, decoding, tokens, given, kv_len, length, params, stop_ids
        )
        forwards += count
        confidences += block_confidences[len(given) : kept]
        steps += block_steps[len(given) : kept]
        tokens, given = tokens + block[:kept], []
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :], confidences, steps, forwards


def _denoise(model, decoding, tokens, given, kv_len, length, params, stop_ids):
    """One block, which begins with the tokens `given`: (tokens, confidences, commit steps, forwards, length
    kept)."""
    start, mask, first = len(tokens), decoding.mask_token_id, len(given)
    block = given + [None] * (length - first)
    confidence, commit_step = [0.0] * length, [0] * length
    for step in range(length):
        masked = [j for j in range(length) if block[j] is None]
        canvas = tokens + [(mask or 0) if token is None else token for token in block]
        hidden = hidden_states(model, canvas, kv_len)
        rows = [start + j - decoding.token_shift for j in masked]
        ids, stats = _predict(hidden[rows], model.head, [start + j for j in masked], step, mask, params)
        for j in _commits(params.commit_policy, masked, stats, step, length, first):
            i = masked.index(j)
            block[j], commit_step[j] = int(ids[i, 1]), step
            confidence[j] = float(stats[i, ops.STAT_COLUMNS["p_chosen"]])
        gap_free = block.index(None) if None in block else length
        ends = [j + 1 for j in range(first, gap_free) if block[j] in stop_ids]
        if ends or gap_free == length:
            return block, confidence, commit_step, step + 1, ends[0] if ends else length
    raise AssertionError("a step commits at least one position")


def _predict(hidden, head, positions: list[int], step: int, mask: int | None, params: SamplingParams):
    """ids and statistics of the given rows."""
    state = BlockState(1, 1, mask)
    state.begin_request(
        0, params.commit_policy, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p,
        seed=params.seed or 0,
    )  # fmt: skip
    state.host.step[0] = step
    forbidden = -1 if mask is None else mask
    return row_stats(
        hidden, head, state.records, torch.zeros(len(hidden)), torch.tensor(positions), forbidden
    )


def _commits(policy, masked: list[int], stats, step: int, length: int, given: int) -> list[int]:
    """Which of the masked positions this step commits."""
    table = torch.full((1, length, stats.shape[1]), torch.nan)
    table[0, masked] = stats
    columns = {name: table[..., column] for name, column in ops.STAT_COLUMNS.items()}
    is_open = ~table[..., 0].isnan()
    seen = Statistics(**columns, step=torch.tensor([step]), to_fill=torch.tensor([length - given]))
    selected = policy.select(is_open, seen)[0].nonzero().flatten().tolist()
    return selected or [max(masked, key=lambda j: (float(seen.p_chosen[0, j]), -j))]
