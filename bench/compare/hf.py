"""transformers' Qwen3 in bf16, eager or compiled; and the denoising loop as one writes it in plain PyTorch,
around the same model with a dense cache."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from cases import committed, config, steps_per_block, way
from timing import answer, median_ms
from transformers import AutoTokenizer, DynamicCache, Qwen3Config, Qwen3ForCausalLM

MASK = 151662


def open_model(job: dict):
    torch.set_num_threads(job["threads"])
    wanted = {k: v for k, v in config(job["size"], "Qwen3ForCausalLM").items() if k != "architectures"}
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen3ForCausalLM(Qwen3Config(**wanted, attn_implementation="sdpa")).eval()
    torch.set_default_dtype(torch.float32)
    return model


def prefilled(model, length: int) -> DynamicCache:
    ids = torch.tensor([[(31 * i) % 151000 for i in range(length)]])
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache, logits_to_keep=1)
    return cache


def block_forward(model, call, cache: DynamicCache, ids: torch.Tensor, start: int) -> torch.Tensor:
    """Logits of a block that sees itself and all before; its keys and values are dropped again."""
    rows = ids.shape[1]
    mask = torch.zeros(1, 1, rows, start + rows, dtype=torch.bfloat16)
    position = torch.arange(start, start + rows)[None]
    logits = call(ids, attention_mask=mask, position_ids=position, past_key_values=cache).logits
    cache.crop(-rows)
    return logits


@torch.inference_mode()
def forwards(job: dict) -> dict:
    """{rows: ms} of a block's forward with all its logits, and the confidences."""
    model = open_model(job)
    call = torch.compile(model, dynamic=False) if job.get("compile") else model
    cache = prefilled(model, job["prefix"])

    def step(rows: int):
        ids = torch.full((1, rows), MASK)
        return block_forward(model, call, cache, ids, job["prefix"]).float().softmax(-1).max(-1)

    return {rows: median_ms(lambda rows=rows: step(rows)) for rows in job["rows"]}


def denoise(model, cache: DynamicCache, prefix: int, tokens: int, block: int, steps: int) -> None:
    """`tokens` new tokens by the fixed schedule, most confident positions first."""
    for start in range(prefix, prefix + tokens, block):
        ids = torch.full((1, block), MASK)
        for count in committed(block, steps):
            probability, best = block_forward(model, model, cache, ids, start).float().softmax(-1).max(-1)
            probability = probability.masked_fill(ids != MASK, -1)
            chosen = probability.topk(count).indices[0]
            ids[0, chosen] = best[0, chosen]
        mask = torch.zeros(1, 1, block, start + block, dtype=torch.bfloat16)
        position = torch.arange(start, start + block)[None]
        model(ids, attention_mask=mask, position_ids=position, past_key_values=cache, logits_to_keep=1)


def decode(model, cache: DynamicCache, tokens: int) -> None:
    ids = torch.tensor([[1]])
    for _ in range(tokens):
        ids = model(ids, past_key_values=cache).logits[:, -1:].argmax(-1)


@torch.inference_mode()
def generations(job: dict) -> dict:
    """{"AR": tokens/s, "block B, TPF t": tokens/s}, the prompt's forward left out."""
    model, found = open_model(job), {}
    cache = prefilled(model, job["prefix"])
    ways = {"AR": lambda: decode(model, cache, job["tokens"])}
    for block in job["blocks"]:
        for tpf in job["tpfs"]:
            arguments = (job["prefix"], job["tokens"], block, steps_per_block(block, tpf))
            ways[way(*arguments[2:])] = lambda a=arguments: denoise(model, cache, *a)
    for name, run in ways.items():
        start = time.perf_counter()
        run()
        found[name] = job["tokens"] / (time.perf_counter() - start)
        cache.crop(-job["tokens"])
    return found


@torch.inference_mode()
def tiny(job: dict) -> dict:
    """edlm-tiny's autoregressive base, by generate()."""
    root = Path(__file__).resolve().parents[2]
    sys.path.insert(0, str(root / "recipes" / "tiny"))
    import tasks
    from quick import sample

    torch.set_num_threads(job["threads"])
    folder = root / "edlm_engine" / "assets" / "edlm-tiny-ar"
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    problems, right = sample(job["count"]), 0

    def solve(problem) -> str:
        ids = tokenizer(problem.prompt, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=80, do_sample=False, attention_mask=torch.ones_like(ids))
        return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)

    solve(problems[0])
    start = time.perf_counter()
    for problem in problems:
        right += tasks.score(problem, solve(problem))
    seconds = (time.perf_counter() - start) / len(problems)
    return {"edlm-tiny-ar": {"seconds_per_problem": seconds, "exact": right / len(problems)}}


if __name__ == "__main__":
    answer(lambda job: {"forwards": forwards, "generations": generations, "tiny": tiny}[job["what"]](job))
