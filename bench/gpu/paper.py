"""The paper's models as shapes for random weights, what it says of their speed, and the fewest bytes that a
step of theirs can read. Source: Fu et al., Efficient-DLM, arXiv:2512.14067, batch 1 on an H100."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "compare"))  # behind this folder
from cases import committed, config, steps_per_block

WEIGHT_BYTES = {None: 2, "int8": 1, "fp8": 1}  # of one weight of a linear layer


@dataclass(frozen=True)
class PaperModel:
    """hidden, inner, …: the Qwen model that it was made from; block: the block length.

    tpf, tokens_per_s: the paper's tokens per forward, and tokens per second.
    """

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool
    qwen: int  # 2: biases on q, k and v; 3: QK-norm
    block: int
    tpf: float
    tokens_per_s: float
    vocab: int = 151936
    head_dim: int = 128
    positions: int = 40960

    @property
    def steps(self) -> int:
        """Denoising steps per block that come nearest to the paper's tokens per forward."""
        return steps_per_block(self.block, self.tpf)

    @property
    def committed(self) -> list[int]:
        """Tokens that each step of a block commits."""
        return committed(self.block, self.steps)

    def tiny(self) -> PaperModel:
        """The same switches, small enough for a dry run."""
        return replace(self, hidden=128, inner=192, layers=2, heads=4, kv_heads=2, head_dim=64, vocab=304,
                       block=8, positions=512)  # fmt: skip

    def config(self, architecture: str) -> dict:
        """config.json as a diffusion model ("EfficientDLM"), or as the Qwen model (any other)."""
        shape = config("0.6B", architecture) | {
            "vocab_size": self.vocab, "hidden_size": self.hidden, "intermediate_size": self.inner,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "max_position_embeddings": self.positions, "tie_word_embeddings": self.tied,
            "eos_token_id": self.vocab - 1,
        }  # fmt: skip
        if architecture == "EfficientDLM":
            shape |= {"mask_token_id": self.vocab - 2, "block_size": self.block, "qk_norm": self.qwen == 3,
                      "attention_bias": self.qwen == 2}  # fmt: skip
        return shape

    def write_config(self, folder: Path) -> Path:
        """A folder for Engine(folder, load_format="dummy")."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config("EfficientDLM")))
        return folder

    def weight_bytes(self, quantization: str | None) -> int:
        """What a forward reads of linear layers and head; the embedding's few rows are not counted."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        matrices = [(q + 2 * kv, self.hidden), (self.hidden, q), (2 * self.inner, self.hidden),
                    (self.hidden, self.inner)]  # fmt: skip
        every = [*matrices * self.layers, (self.vocab, self.hidden)]
        weights, outputs = sum(a * b for a, b in every), sum(a for a, _ in every)
        return weights * WEIGHT_BYTES[quantization] + (4 * outputs if quantization else 0)

    def kv_bytes(self, prefix: int, batch: int) -> int:
        """Keys and values in 16 bits, those of the block included."""
        return batch * (prefix + self.block) * self.layers * 2 * self.kv_heads * self.head_dim * 2


MODELS = {
    model.name: model
    for model in (
        PaperModel("8B", 4096, 12288, 36, 32, 8, False, 3, block=32, tpf=3.27, tokens_per_s=130.7),
        PaperModel("4B", 2560, 9728, 36, 32, 8, True, 3, block=32, tpf=3.01, tokens_per_s=130.2),
        PaperModel("1.5B", 1536, 8960, 28, 12, 2, True, 2, block=16, tpf=2.69, tokens_per_s=184.5),
    )
}
