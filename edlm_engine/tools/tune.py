"""`edlm tune`: the block length and commit policy that are fastest on this machine within a stated loss.

A forward of many rows costs time on a CPU, where a GPU hides it, and models keep their accuracy at smaller
blocks than they were trained with (Efficient-DLM, arXiv 2512.14067, Fig. 3): the best block depends on the
machine as much as on the model.
"""

import codecs
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..checkpoints.json_lines import read_json_lines
from ..engine import Engine
from ..errors import shown
from ..outputs import Generation
from ..steps.policies import BY_NAME, Policy, Schedule, Threshold, describe
from .examples import EXAMPLES, read_examples
from .metering import step_times

SMALLEST_BLOCK = 4
THRESHOLDS = tuple(Threshold(value) for value in Threshold.to_tune)
ROUNDS, ENOUGH_S = 5, 3.0  # per setting


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to decode, and how it did on the prompts, one at a time.

    policy: in its text form; "schedule" is one token per step. agreement: with the checkpoint's own block
    length at one token per step: equal tokens, position by position, over the tokens of the longer text; over
    all prompts.
    """

    block_length: int
    policy: str
    tokens_per_forward: float
    tokens_per_second: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was found. step_seconds: {rows: median seconds of a denoising step}."""

    step_seconds: dict[int, float]
    reference: Setting
    settings: list[Setting]
    best: Setting
    loss: float

    def to_dict(self) -> dict:
        return asdict(self)


def block_lengths(longest: int) -> list[int]:
    """Powers of two below the checkpoint's block length, and that."""
    powers = [1 << i for i in range(12) if SMALLEST_BLOCK <= 1 << i < longest]
    return [*powers, longest]


def candidates(text: str) -> list[Policy]:
    """Policies to try: of "entropy_bound" those with the values that its file suggests, of
    "entropy_bound:0.1,0.3" those with these values. Raises ValueError that lists the known names."""
    name, _, values = text.partition(":")
    if name not in BY_NAME:
        raise ValueError(f"policy {text!r}: no such policy; known: {', '.join(BY_NAME)}")
    try:
        numbers = [float(value) for value in values.split(",")] if values else BY_NAME[name].to_tune
        return [BY_NAME[name](int(n) if n == int(n) else n) for n in numbers]
    except ValueError as error:
        raise ValueError(f"policy {text!r}: {error}") from None


def read_prompts(file: Path | None, model_folder: Path) -> list[str]:
    """Prompts of a .jsonl file (objects with "prompt", or strings), of a text file (one a line), or by
    default the checkpoint's own examples. Lines end at line feeds. Raises ValueError naming file and line,
    OSError for a file that cannot be read."""
    if file is None:
        if not (model_folder / EXAMPLES).exists():
            raise ValueError(
                f"{model_folder}: has no {EXAMPLES}; give prompts of your own with --prompts FILE"
            )
        return [example["prompt"] for example in read_examples(model_folder, ("prompt",))]
    if file.suffix.lower() == ".jsonl":
        prompts = [_prompt_of(value, f"{file}:{number}") for number, value in read_json_lines(file)]
    else:
        lines = file.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
        lines = [_text_of(line, f"{file}:{number}") for number, line in enumerate(lines, 1)]
        prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{file}: holds no prompt")
    return prompts


def _prompt_of(item: object, where: str) -> str:
    prompt = item.get("prompt") if isinstance(item, dict) else item
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(
            f"{where}: must be a string or an object with the key 'prompt' and a text, is {shown(item)}"
        )
    return prompt


def _text_of(line: bytes, where: str) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: byte {error.start + 1} of the line is {line[error.start]:#04x}, which is no UTF-8"
        ) from None


def agreement(results: list[Generation], expected: list[Generation]) -> float:
    """Equal tokens, position by position, over the tokens of the longer of both texts."""
    equal = longer = 0
    for a, b in zip(results, expected, strict=True):
        equal += sum(x == y for x, y in zip(a.token_ids, b.token_ids, strict=False))
        longer += max(len(a.token_ids), len(b.token_ids))
    return equal / longer


def tune(
    engine: Engine,
    prompts: list[str],
    *,
    loss: float = 0.01,
    max_new_tokens: int = 128,
    policies: Sequence[Policy] = THRESHOLDS,
    tick: Callable[[], None] = lambda: None,
) -> Tuning:
    """Measure every block length and policy on the prompts, and choose the fastest whose agreement is at
    least 1 - loss.

    engine: fresh, without a request before. tick: called after every setting; there are steps_of(engine).
    Raises ValueError for an autoregressive checkpoint, for a policy without a text form, which the settings
    file needs, and for prompts that do not fit, before any of them is measured.
    """
    if engine.decoding.autoregressive:
        raise ValueError(f"{engine.path}: is autoregressive; there is no block length to tune")
    if not 0 <= loss <= 1:
        raise ValueError(f"loss must be in [0, 1], got {loss!r}")
    for policy in policies:
        describe(policy)
    longest = engine.decoding.block_length
    rows = sorted({1, 2, *block_lengths(longest)} & set(range(longest + 1)))
    step_seconds = step_times(engine, rows, min(64, engine.kv_cache_tokens - longest))
    tick()
    engine.generate(prompts, max_new_tokens=max_new_tokens)  # caches and buffers have their size now

    def run(block_length: int, policy: Policy) -> tuple[list[Generation], float]:
        """The results, and the seconds of the best of a few rounds: other work on the machine only adds."""
        options = {"block_length": block_length, "policy": policy, "max_new_tokens": max_new_tokens}
        rounds = []
        while not rounds or (len(rounds) < ROUNDS and sum(rounds) < ENOUGH_S):
            start = time.perf_counter()
            results = [engine.generate(prompt, **options) for prompt in prompts]
            rounds.append(time.perf_counter() - start)
        return results, min(rounds)

    def setting(block_length: int, policy: Policy, results, seconds: float) -> Setting:
        tokens, nfe = sum(len(r.token_ids) for r in results), sum(r.nfe for r in results)
        agreed = agreement(results, expected)
        return Setting(block_length, describe(policy), tokens / nfe, tokens / seconds, agreed)

    expected, seconds = run(longest, Schedule())
    reference, settings = setting(longest, Schedule(), expected, seconds), []
    tick()
    for block_length in block_lengths(longest):
        for policy in policies:
            settings.append(setting(block_length, policy, *run(block_length, policy)))
            tick()
    allowed = [s for s in settings if s.agreement >= 1 - loss] or [reference]
    best = max(allowed, key=lambda s: s.tokens_per_second)
    return Tuning(step_seconds, reference, settings, best, loss)


def steps_of(engine: Engine, policies: Sequence[Policy] = THRESHOLDS) -> int:
    """How often tune() calls tick()."""
    return 2 + len(block_lengths(engine.decoding.block_length)) * len(policies)
