"""The training loop: optimizers, schedule, resuming, progress."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from edlm_engine.convert.checkpoint import replace_file

LOG_EVERY = 50  # steps between two plain log lines


@dataclass(frozen=True)
class TrainConfig:
    """What every training run here needs.

    steps: optimizer steps. rows, length: a batch is `rows` packed rows of `length` tokens. learning_rate:
    AdamW's peak, cosine-decayed to `final_learning_rate` after a linear warm-up over `warmup_steps`.
    cosine_steps: where the cosine reaches its end, None for `steps`; over the last `cooldown_steps` the rate
    goes linearly to the final one, so a run may end before its cosine. optimizer: "adamw" (the paper's), or
    "muon": Muon at `muon_learning_rate` (same schedule) for the matrices of the layers, AdamW for the rest.
    gradient_clip: largest norm of the whole gradient. prompt_weight: loss weight of prompt tokens, where data
    tells them apart. bf16: bf16 autocast over fp32 weights. compile: torch.compile the forward. device:
    "auto" is CUDA if there is one. seed: of the data's order and all noise. checkpoint_every: steps between
    two saves of the whole state.
    """

    steps: int = 1000
    rows: int = 16
    length: int = 256
    learning_rate: float = 1e-5
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    cosine_steps: int | None = None
    cooldown_steps: int = 0
    optimizer: str = "adamw"
    muon_learning_rate: float = 0.02
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    prompt_weight: float = 1.0
    bf16: bool = True
    compile: bool = False
    device: str = "auto"
    seed: int = 0
    checkpoint_every: int = 500

    def __post_init__(self):
        for name in ("steps", "rows", "length", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.cooldown_steps <= self.steps - self.warmup_steps:
            raise ValueError(
                f"cooldown_steps must be in 0 … steps - warmup_steps ({self.steps - self.warmup_steps}), "
                f"got {self.cooldown_steps}"
            )
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer must be 'adamw' or 'muon', got {self.optimizer!r}")
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                f"final_learning_rate {self.final_learning_rate} is not in 0 … {self.learning_rate}"
            )
        if not 0 <= self.prompt_weight <= 1:
            raise ValueError(f"prompt_weight must be in 0 … 1, got {self.prompt_weight}")

    def torch_device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)


def rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step as a share of the peak: warm-up, cosine, cooldown, as `TrainConfig` says."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    final = config.final_learning_rate / config.learning_rate
    cooldown_from = config.steps - config.cooldown_steps
    span = max(1, (config.cosine_steps or config.steps) - config.warmup_steps)
    done = min(1.0, (min(step, cooldown_from) - config.warmup_steps) / span)
    share = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
    if step > cooldown_from:
        share = final + (share - final) * (config.steps - step) / config.cooldown_steps
    return share


def optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    matrices, rest = [], []
    for name, weight in model.named_parameters():
        in_layer = weight.dim() == 2 and ".layers." in name
        (matrices if in_layer and config.optimizer == "muon" else rest).append(weight)
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, config.learning_rate, (0.9, 0.95), weight_decay=config.weight_decay)
    ]
    if matrices:
        found.append(torch.optim.Muon(matrices, config.muon_learning_rate, weight_decay=config.weight_decay))
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return found


@dataclass
class State:
    """A run between two steps: all that has to survive a stop."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    step: int = 0

    def save(self, path: Path, config: dict) -> None:
        content = {
            "config": config,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary: torch.save(content, temporary))

    def load(self, path: Path, config: dict) -> None:
        content = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in config.items():
            if content["config"].get(name) != value:
                was = content["config"].get(name)
                raise ValueError(
                    f"{path} is of a run with {name}={was!r}, not {value!r}; delete it to start over"
                )
        self.step = content["step"]
        self.model.load_state_dict(content["model"])
        for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(state)


class Reporter:
    """Loss and tokens/s: a progress bar on a terminal, a line every LOG_EVERY steps elsewhere."""

    def __init__(self, title: str, first: int, config: TrainConfig):
        self.title, self.config, self.first = title, config, first
        self.losses: list[float] = []
        self.since = self.start = time.perf_counter()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, disable=not sys.stdout.isatty())
        self.task = self.bar.add_task(title, total=config.steps, completed=first, note="")

    def __call__(self, step: int, loss: float) -> None:
        self.losses.append(loss)
        every = 5 if not self.bar.disable else LOG_EVERY
        if step % every and step != self.config.steps:
            return
        now = time.perf_counter()
        tokens = len(self.losses) * self.config.rows * self.config.length
        note = f"loss {sum(self.losses) / len(self.losses):.4f}  {tokens / (now - self.since):,.0f} tokens/s"
        if self.bar.disable:
            print(
                f"{self.title} step {step}/{self.config.steps}  {note}  {now - self.start:.0f} s", flush=True
            )
        self.bar.update(self.task, completed=step, note=note)
        self.losses, self.since = [], now


def train(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    config: TrainConfig,
    state_file: Path,
    *,
    title: str = "training",
    stop_after: int | None = None,
    every: tuple[int, Callable[[int], None]] | None = None,
) -> bool:
    """Run `config.steps` steps of minimising `loss_of(step)`, a scalar that must depend on nothing but step
    and model.

    Resumes from `state_file` if it exists, with the same result as an uninterrupted run. `stop_after` stops
    at that step with the state saved. `every` = (n, f) calls f(step) each n steps. True when all steps are
    done. Raises FloatingPointError when the loss is not finite, ValueError when `state_file` is of a
    different run.
    """
    state = State(model, optimizers(model, config))
    # Where it runs and how often it saves does not change what is computed.
    identity = {k: v for k, v in asdict(config).items() if k not in ("device", "compile", "checkpoint_every")}
    if state_file.is_file():
        state.load(state_file, identity)
    report = Reporter(title, state.step, config)
    last = min(config.steps, stop_after if stop_after is not None else config.steps)
    with report.bar:
        while state.step < last:
            loss = train_step(state, loss_of, config)
            state.step += 1
            report(state.step, loss)
            if state.step % config.checkpoint_every == 0 or state.step == last:
                state.save(state_file, identity)
            if every and state.step % every[0] == 0:
                every[1](state.step)
    return state.step == config.steps


def train_step(state: State, loss_of: Callable[[int], Tensor], config: TrainConfig) -> float:
    """One optimizer step; the loss before it."""
    loss = loss_of(state.step)
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(
            f"loss is {value} at step {state.step}; lower learning_rate or check the data"
        )
    loss.backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), config.gradient_clip)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(config, state.step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return value
