"""config.json of real model shapes, for load_format="dummy": no weights are needed to time a forward.

1.5B, 4B and 8B are the Efficient-DLM sizes (shapes of Qwen2.5-1.5B, Qwen3-4B, Qwen3-8B); 0.6B is Qwen3's.
"""

import json
from pathlib import Path

_COMMON = {
    "architectures": ["EfficientDLM"],
    "model_type": "edlm",
    "vocab_size": 151936,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "mask_token_id": 151662,
    "eos_token_id": 151643,
    "block_size": 32,
    "dlm_paradigm": "block_diff",
    "qk_norm": True,
    "attention_bias": False,
}


def _shape(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, tied: bool, **changes) -> dict:
    return _COMMON | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        **changes,
    }


SHAPES = {
    "0.6B": _shape(1024, 3072, 28, 16, 8, True),
    "1.5B": _shape(1536, 8960, 28, 12, 2, True, qk_norm=False, attention_bias=True, block_size=16),
    "4B": _shape(2560, 9728, 36, 32, 8, True),
    "8B": _shape(4096, 12288, 36, 32, 8, False),
}


def write_config(folder: Path, shape: str) -> Path:
    """A folder that Engine(folder, load_format="dummy") takes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[shape], indent=1))
    return folder
