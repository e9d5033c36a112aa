"""A request, and the sequence that it becomes while it runs."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter

from ..outputs import Chunk
from ..params import SamplingParams
from .transcript import Transcript


@dataclass(eq=False, slots=True)
class Request:
    """One prompt on its way: what the caller holds while the engine works.

    params: with a number for max_new_tokens. timeout: seconds after which it has failed; None: none.
    priority: of those that wait, the highest is admitted first. admitted: when it was.
    """

    prompt: list[int]
    params: SamplingParams
    seed: int
    transcript: Transcript
    on_chunk: Callable[[Chunk], None] | None = None  # for streams
    timeout: float | None = None
    priority: int = 0
    future: Future = field(default_factory=Future)
    submitted: float = field(default_factory=perf_counter)
    admitted: float | None = None
    cancelled: bool = False

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.timeout is not None and perf_counter() - self.submitted > self.timeout

    @property
    def length(self) -> int:
        """Positions of the prompt and all that may follow."""
        return len(self.prompt) + self.params.max_new_tokens


class Sequence:
    """A running request: its slot, and how far it has come.

    prefix: positions before its first block, all of the prompt; prompt_rows: those of them that forwards of
    the prompt write, cached: those that they have written. With token shift the last position of the prefix
    is left to the first denoising step, which needs its row.
    tokens: the prefix and the finished blocks, so that the active block starts at len(tokens).
    """

    def __init__(self, request: Request, slot: int, block_length: int, *, aligned: bool, shift: bool):
        self.request, self.slot, self.block_length = request, slot, block_length
        prompt = request.prompt
        self.prefix = len(prompt) // block_length * block_length if aligned else len(prompt)
        self.prompt_rows = max(0, self.prefix - shift)
        self.cached = 0
        self.tokens = prompt[: self.prefix]
        self.policy = request.params.commit_policy
        self.confidences: list[float] = []
        self.entropies: list[float] = []
        self.commit_steps: list[int] = []
        self.read = 0  # leading positions of the active block that the transcript has
        self.prefills = self.denoisings = 0

    @property
    def block_start(self) -> int:
        return len(self.tokens)

    @property
    def output_start(self) -> int:
        """Of the active block in the output; below 0 where the block begins with the end of the prompt."""
        return self.block_start - len(self.request.prompt)

    @property
    def prompt_due(self) -> bool:
        """Whether the cache lacks a part of the prompt."""
        return self.cached < self.prompt_rows
