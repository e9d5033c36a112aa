"""What is compared: model shapes, alternatives, and the schedule of a denoising loop."""

from __future__ import annotations

import json
from pathlib import Path

ROWS = (1, 8, 16, 32, 64)
BLOCKS = (8, 16, 32)
TPFS = (1.0, 2.7, 3.3)  # tokens per forward: one by one, and the paper's operating points
NEW_TOKENS = 64
VOCAB, HEAD_DIM, HEADS, KV_HEADS, LAYERS = 151936, 128, 16, 8, 28
SIZES = {"0.6B": (1024, 3072), "1.7B": (2048, 6144)}  # Qwen3: hidden, intermediate; tied head

# name of a column -> (module that runs it, its options)
ALTERNATIVES = {
    "edlm bf16": ("ours", {}),
    "edlm int8": ("ours", {"quantization": "int8"}),
    "transformers bf16": ("hf", {}),
    "transformers compiled": ("hf", {"compile": True}),
    "llama.cpp bf16": ("llamacpp", {"type": "bf16"}),
    "llama.cpp Q8_0": ("llamacpp", {"type": "q8_0"}),
    "llama.cpp Q4_0": ("llamacpp", {"type": "q4_0"}),
}


def steps_per_block(block: int, tpf: float) -> int:
    """Denoising steps that make about `tpf` tokens per forward; a commit rides along with the next block."""
    return max(1, round(block / tpf))


def way(block: int, steps: int) -> str:
    """The name of a denoising loop, by the tokens per forward that it really makes."""
    return f"block {block}, TPF {block / steps:.2g}"


def committed(block: int, steps: int) -> list[int]:
    """Tokens that each step of the fixed schedule commits."""
    share, extra = divmod(block, steps)
    return [share + (step < extra) for step in range(steps)]


def config(size: str, architecture: str = "EfficientDLM") -> dict:
    """config.json of that Qwen3 size, as a diffusion model or as the plain one."""
    hidden, inner = SIZES[size]
    shape = {
        "architectures": [architecture],
        "model_type": "edlm" if architecture == "EfficientDLM" else "qwen3",
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "eos_token_id": 151643,
    }
    if architecture == "EfficientDLM":
        shape |= {"mask_token_id": 151662, "block_size": 64, "dlm_paradigm": "block_diff", "qk_norm": True}
    return shape


def write_config(folder: Path, size: str, architecture: str = "EfficientDLM") -> Path:
    """A folder for Engine(folder, load_format="dummy")."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(size, architecture)))
    return folder
