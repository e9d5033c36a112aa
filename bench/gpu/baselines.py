"""What one would otherwise run on the GPU: the denoising loop in plain PyTorch around transformers' model,
the same compiled, and transformers' own autoregressive decoding with a static cache."""

from __future__ import annotations

import inspect
import time

import torch
import transformers
from ours import at_paper_tpf
from paper import PaperModel


class DenseCache:
    """Keys and values [1, kv heads, length, head size] of all layers, written at `positions`, which the
    caller sets before every forward; so a noisy step's are overwritten by the next one's. For transformers'
    models, which call update() alone."""

    def __init__(self, model: PaperModel, length: int, device: str):
        shape = (1, model.kv_heads, length, model.head_dim)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=torch.bfloat16, device=device) for _ in range(model.layers)]
            for _ in "kv"
        )
        for tensor in (*self.keys, *self.values):
            torch._dynamo.mark_static_address(tensor)  # else a compiled step copies them all
        self.length = length
        self.positions = torch.arange(0)

    def update(self, keys, values, layer: int, *_, **__):
        self.keys[layer].index_copy_(2, self.positions, keys)
        self.values[layer].index_copy_(2, self.positions, values)
        return self.keys[layer], self.values[layer]


class PlainLoop:
    """The denoising loop as one writes it in PyTorch: no waiting for the GPU inside."""

    def __init__(self, network, model: PaperModel, length: int, device: str, compiled: bool):
        self._network, self._model, self._device = network, model, device
        self._cache = DenseCache(model, length, device)
        parameters = inspect.signature(type(network.model).forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        options = {"mode": "reduce-overhead"} if device == "cuda" else {}
        self._step = (
            torch.compile(self._confidences, dynamic=False, **options) if compiled else self._confidences
        )

    def _logits(self, ids, positions, mask, **options):
        self._cache.positions = positions
        options[self._cache_name] = self._cache
        return self._network(
            ids, attention_mask={"full_attention": mask}, position_ids=positions[None], **options
        ).logits  # fmt: skip

    def _confidences(self, ids, positions, mask):
        return self._logits(ids, positions, mask).float().softmax(-1).max(-1)

    def _places(self, start: int, rows: int):
        """The rows' positions, and a mask that shows them all that lies before and themselves."""
        positions = torch.arange(start, start + rows, device=self._device)
        seen = torch.arange(self._cache.length, device=self._device) < start + rows
        return positions, seen.expand(1, 1, rows, -1).contiguous()

    def run(self, prefix: int, tokens: int) -> int:
        """A prompt, then `tokens` more by the model's schedule; how many forwards the blocks took."""
        block, mask_id = self._model.block, self._model.vocab - 2
        prompt = (31 * torch.arange(prefix, device=self._device))[None] % mask_id
        self._logits(prompt, *self._places(0, prefix), logits_to_keep=1)
        forwards = 0
        for start in range(prefix, prefix + tokens, block):
            places = self._places(start, block)
            ids = torch.full((1, block), mask_id, device=self._device)
            for count in self._model.committed:
                if self._device == "cuda":
                    torch.compiler.cudagraph_mark_step_begin()
                probability, best = self._step(ids, *places)
                chosen = probability.masked_fill(ids != mask_id, -1).topk(count).indices
                ids = ids.scatter(1, chosen, best.gather(1, chosen))
                forwards += 1
            self._logits(ids, *places, logits_to_keep=1)  # the block's clean keys and values
            forwards += 1
        return forwards


def open_network(model: PaperModel, device: str):
    """transformers' model with random weights in bf16."""
    kind = f"Qwen{model.qwen}"
    wanted = {
        k: v
        for k, v in model.config(f"{kind}ForCausalLM").items()
        if k not in ("architectures", "model_type")
    }
    settings = getattr(transformers, f"{kind}Config")(**wanted, attn_implementation="sdpa")
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return getattr(transformers, f"{kind}ForCausalLM")(settings).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def timed(call, device: str):
    """Seconds of the second call, and what it returned."""
    for _ in range(2):
        start = time.perf_counter()
        result = call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return seconds, result


@torch.no_grad()  # compilers do not like inference tensors
def plain_loop(network, model: PaperModel, device: str, prefix: int, tokens: int, compiled: bool) -> dict:
    """tokens/s with the prompt's forward; a commit is a forward of its own, which the figure for the paper's
    tokens per forward does not count as one, as if it rode along."""
    loop = PlainLoop(network, model, prefix + tokens, device, compiled)
    seconds, forwards = timed(lambda: loop.run(prefix, tokens), device)
    found = at_paper_tpf(model, tokens / seconds, model.block / model.steps)
    return found | {"forwards": forwards, "ms_per_step": 1e3 * seconds / forwards}


@torch.no_grad()
def autoregressive(network, model: PaperModel, device: str, prefix: int, tokens: int) -> dict:
    """transformers' generate(), which compiles the decoding step on a GPU by itself."""
    ids = (31 * torch.arange(prefix, device=device))[None] % (model.vocab - 2)
    options = {
        "do_sample": False,
        "cache_implementation": "static",
        "pad_token_id": 0,
        "min_new_tokens": tokens,
    }
    seconds, out = timed(
        lambda: network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **options),
        device,
    )
    made = out.shape[1] - prefix
    return {"tokens_per_s": made / seconds, "tokens_per_forward": 1.0, "ms_per_step": 1e3 * seconds / made}
