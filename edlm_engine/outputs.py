"""What a request gives back."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Forwards:
    """Forward passes that a request took part in, by purpose.

    prefill: prompt only. denoising: with an active block (the commit of the block before it, or the end of
        the prompt, may ride along).
    """

    prefill: int = 0
    denoising: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished request.

    text: decoded tokens, special tokens skipped, cut before a stop string.
    token_ids: generated ids, up to and including an eos or stop id.
    prompt_token_ids: the prompt as the model saw it.
    finish_reason: "eos", "stop" (stop id or stop string) or "length".
    confidences: per generated token, its probability when it was committed (raw logits, fp32).
    entropies: per generated token, the entropy in nats of what was predicted there when it was committed.
    commit_steps: per generated token, the denoising step of its block that committed it, from 0.
    nfe: network function evaluations, the denoising forwards, without the prefill (as the family counts
        them).
    tokens_per_forward: len(token_ids) / nfe, the TPF of Efficient-DLM (arXiv 2512.14067). Forwards that
        committed positions behind the final eos or stop count, those positions do not: one token per step
        can end below 1.
    seconds: from submission to the end, waiting included. queue_seconds: of these until it was given a slot.
    forwards: the same forwards, apart.
    """

    text: str
    token_ids: list[int] = field(repr=False)
    prompt_token_ids: list[int] = field(repr=False)
    finish_reason: str
    confidences: list[float] = field(repr=False)
    entropies: list[float] = field(repr=False)
    commit_steps: list[int] = field(repr=False)
    nfe: int
    tokens_per_forward: float
    seconds: float
    forwards: Forwards = field(repr=False)
    queue_seconds: float = field(default=0.0, repr=False)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One denoising step of a streamed request.

    positions: output positions committed by this step, ascending; 0 is the first generated token.
        They never change afterwards, but are not contiguous inside a block.
    token_ids, confidences: of those positions.
    block: output positions of the active block.
    delta: the text that this step has finished; joined, the deltas of all chunks are the text.
    generation: the whole result, in the last chunk only.
    """

    positions: list[int]
    token_ids: list[int]
    confidences: list[float]
    block: range
    delta: str = ""
    generation: Generation | None = None
    # The request's text in pieces, shared by its chunks: a text each would take memory by its square.
    _pieces: list[str] = field(default_factory=list, repr=False, compare=False)
    _count: int = field(default=0, repr=False, compare=False)

    @property
    def text(self) -> str:
        """The finished text so far: everything before the first position still masked, without a tail that
        may yet turn out to be part of a stop string or of an unfinished character. Only grows."""
        return "".join(self._pieces[: self._count])
