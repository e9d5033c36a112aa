"""Shapes and switches of a decoder-only transformer, read from a checkpoint's config.json."""

from dataclasses import dataclass

from .rope import Rope

PREFILLS = ("block_causal", "bidirectional", "causal")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder-only transformer; the switches tell the families apart.

    max_positions: rotary positions the checkpoint was made for.
    tied_head: the LM head is the embedding matrix.
    qkv_bias: biases on the q, k and v projections (Qwen2). out_bias, mlp_bias: on the projection behind
        attention, and on all three of the MLP (Llama's and Qwen3's attention_bias, Llama's mlp_bias).
    qk_norm: RMS norm of every q and k head before RoPE (Qwen3).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: Rope
    max_positions: int
    tied_head: bool
    qkv_bias: bool
    qk_norm: bool
    out_bias: bool = False
    mlp_bias: bool = False

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def rope_theta(self) -> float:
        return self.rope.theta

    @property
    def num_parameters(self) -> int:
        """Weights of the model, the embedding counted once if the head is tied."""
        attention = self.hidden_size * (2 * self.q_size + 2 * self.kv_size)
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        bias = self.q_size + 2 * self.kv_size if self.qkv_bias else 0
        bias += self.hidden_size if self.out_bias else 0
        bias += 2 * self.intermediate_size + self.hidden_size if self.mlp_bias else 0
        layer = attention + 3 * self.hidden_size * self.intermediate_size + norms + bias
        embeddings = (1 if self.tied_head else 2) * self.vocab_size * self.hidden_size
        return self.num_layers * layer + embeddings + self.hidden_size


@dataclass(frozen=True, slots=True)
class DecodingConfig:
    """How a checkpoint wants to be decoded.

    mask_token_id: None for autoregressive checkpoints, or where the config file does not say.
    prefill: "block_causal", "bidirectional" or "causal": what a prompt row sees.
    token_shift: logits of position i come from row i - 1 (autoregressive models, Dream).
    aligned: blocks begin at multiples of the block length, so that the first one holds the end of the prompt;
        else the first one begins where the prompt ends.
    """

    mask_token_id: int | None
    eos_token_ids: tuple[int, ...]
    block_length: int
    prefill: str
    token_shift: bool
    aligned: bool = False

    @property
    def autoregressive(self) -> bool:
        """Plain next-token decoding is block diffusion in blocks of one position with token shift: the row
        before the block predicts it, the block has no row of its own, and no mask is ever an input."""
        return self.token_shift and self.block_length == 1
