"""llama.cpp through llama-cpp-python's low-level interface, on GGUF files with random weights."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import gguf
import llama_cpp as api
import numpy as np
from cases import HEAD_DIM, HEADS, KV_HEADS, LAYERS, SIZES, VOCAB
from timing import answer, median_ms

MODELS = Path(__file__).resolve().parents[2] / "build" / "compare" / "models"
FILE_TYPES = {"q8_0": api.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": api.LLAMA_FTYPE_MOSTLY_Q4_0}


def tensors(size: str):
    """(name, shape, whether a matrix) of all tensors."""
    hidden, inner = SIZES[size]
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    yield "token_embd", (VOCAB, hidden), True
    yield "output_norm", (hidden,), False
    for i in range(LAYERS):
        matrices = {
            "attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, q),
            "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner),
        }  # fmt: skip
        norms = {"attn_norm": hidden, "ffn_norm": hidden, "attn_q_norm": HEAD_DIM, "attn_k_norm": HEAD_DIM}
        for name, shape in matrices.items():
            yield f"blk.{i}.{name}", shape, True
        for name, width in norms.items():
            yield f"blk.{i}.{name}", (width,), False


def write_gguf(path: Path, size: str) -> None:
    """A bf16 model without a vocabulary; its weights repeat one pool of N(0, 0.02)."""
    hidden, inner = SIZES[size]
    pool = (np.random.default_rng(0).standard_normal(1_000_003) * 0.02).astype(np.float32)
    pool = (pool.view(np.uint32) >> 16).astype(np.uint16)  # bf16, cut
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("none")
    for name, shape, matrix in tensors(size):
        if matrix:
            values = np.resize(pool, shape)
            writer.add_tensor(
                f"{name}.weight", values.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16
            )
        else:
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def model_file(size: str, kind: str) -> Path:
    """Made when first asked for."""
    path = MODELS / f"{size}-{kind}.gguf"
    if path.exists():
        return path
    MODELS.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    if kind == "bf16":
        write_gguf(partial, size)
    else:
        params = api.llama_model_quantize_default_params()
        params.ftype, params.nthread = FILE_TYPES[kind], os.cpu_count() or 1
        source = str(model_file(size, "bf16")).encode()
        if api.llama_model_quantize(source, str(partial).encode(), ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp could not write {path.name}")
    partial.rename(path)
    return path


class Model:
    """A model, its context with a prefix in it, and forwards behind that."""

    def __init__(self, job: dict):
        api.llama_backend_init()
        path = str(model_file(job["size"], job["type"])).encode()
        self.model = api.llama_model_load_from_file(path, api.llama_model_default_params())
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 4096, 512, 512
        params.n_threads = params.n_threads_batch = job["threads"]
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp made no context")
        self.memory = api.llama_get_memory(self.context)
        self.batch = api.llama_batch_init(512, 0, 1)
        self.prefix = job["prefix"]
        for start in range(0, self.prefix, 512):
            self.forward(start, min(512, self.prefix - start), logits=False)

    def forward(self, start: int, rows: int, logits: bool = True) -> None:
        batch = self.batch
        batch.n_tokens = rows
        for i in range(rows):
            batch.token[i], batch.pos[i] = (31 * (start + i)) % 151000, start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = logits
        if api.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")

    def drop(self) -> None:
        """Forget what came after the prefix."""
        api.llama_memory_seq_rm(self.memory, 0, self.prefix, -1)


def forwards(job: dict) -> dict:
    """{rows: ms} of a forward with all its logits."""
    model = Model(job)

    def step(rows: int):
        model.forward(model.prefix, rows)
        model.drop()

    return {rows: median_ms(lambda rows=rows: step(rows)) for rows in job["rows"]}


def generations(job: dict) -> dict:
    """{"AR": tokens/s}: greedy, one token per forward."""
    model = Model(job)
    model.forward(model.prefix, 1)
    model.drop()
    start = time.perf_counter()
    for i in range(job["tokens"]):
        model.forward(model.prefix + i, 1)
        logits = api.llama_get_logits_ith(model.context, 0)
        int(np.ctypeslib.as_array(logits, (VOCAB,)).argmax())
    return {"AR": job["tokens"] / (time.perf_counter() - start)}


if __name__ == "__main__":
    answer(lambda job: {"forwards": forwards, "generations": generations}[job["what"]](job))
