"""The training loop: optimizers, schedule, stopping and resuming."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edlm_engine.convert.divergence import Divergence
from edlm_engine.convert.files import replace_file
from edlm_engine.convert.interrupt import Interrupt
from edlm_engine.convert.reporter import Reporter
from edlm_engine.options import choose_dtype

STATE_FILE = "resume.pt"  # in the folder to be written
# Where a run computes and how often it saves does not change what is computed.
NOT_COMPUTED = ("device", "compile", "checkpoint_every")
# What torch raises for files that it did not write, or wrote in part, or with other contents.
UNREADABLE = (
    RuntimeError, pickle.UnpicklingError, EOFError, OSError, KeyError, TypeError, ValueError, AttributeError,
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """What every training run here needs.

    steps: optimizer steps. rows, length: a batch is `rows` packed rows of `length` tokens. learning_rate:
    AdamW's peak, cosine-decayed to `final_learning_rate` after a linear warm-up over `warmup_steps`.
    cosine_steps: where the cosine reaches its end, None for `steps`; over the last `cooldown_steps` the rate
    goes linearly to the final one, so a run may end before its cosine. optimizer: "adamw" (the paper's), or
    "muon": Muon at `muon_learning_rate` (same schedule) for the matrices of the layers, AdamW for the rest.
    gradient_clip: largest norm of the whole gradient. prompt_weight: loss weight of prompt tokens, where data
    tells them apart. bf16: bf16 autocast over fp32 weights; None: where the device multiplies bf16 natively.
    compile: torch.compile the forward. device: "auto" is CUDA if there is one. seed: of the data's order and
    all noise. checkpoint_every: steps between two saves of the whole state.
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
    bf16: bool | None = None
    compile: bool = False
    device: str = "auto"
    seed: int = 0
    checkpoint_every: int = 500

    def __post_init__(self):
        for name in ("steps", "rows", "length", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "muon_learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                f"final_learning_rate {self.final_learning_rate} is not in 0 … {self.learning_rate}"
            )
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps must be in 0 … steps ({self.steps}), got {self.warmup_steps}")
        if not 0 <= self.cooldown_steps <= self.steps - self.warmup_steps:
            raise ValueError(
                f"cooldown_steps must be in 0 … steps - warmup_steps ({self.steps - self.warmup_steps}), "
                f"got {self.cooldown_steps}"
            )
        if self.cosine_steps is not None and self.cosine_steps < 1:
            raise ValueError(f"cosine_steps must be at least 1 or None (steps), got {self.cosine_steps}")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer must be 'adamw' or 'muon', got {self.optimizer!r}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        if not 0 <= self.prompt_weight <= 1:
            raise ValueError(f"prompt_weight must be in 0 … 1, got {self.prompt_weight}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in 0 … 2**31 - 1, got {self.seed}")

    def torch_device(self) -> torch.device:
        """Raises ValueError for a device that there is none of."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"device must be auto, cpu or cuda, got {self.device!r}") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r}: torch finds no CUDA device here; use 'cpu'")
        return device

    def with_precision(self) -> TrainConfig:
        """This with `bf16` decided. A CPU that has to emulate bf16 takes many times as long for it as for
        fp32."""
        if self.bf16 is not None:
            return self
        return replace(self, bf16=choose_dtype("auto", self.torch_device().type) == "bfloat16")


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

    def save(self, path: Path, identity: dict) -> None:
        content = {
            "config": identity,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary: torch.save(content, temporary))

    def load(self, path: Path, identity: dict) -> None:
        content = read_state(path, identity)
        try:
            self.model.load_state_dict(content["model"])
            for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        except UNREADABLE as error:
            raise no_state(path, str(error).partition("\n")[0]) from error
        self.step = content["step"]


def read_state(path: Path, identity: dict, *, mapped: bool = False) -> dict:
    """What `State.save` wrote; `mapped`: its tensors stay in the file, for a look at the rest.

    Raises ValueError unless the file can be read and is of a run with all values of `identity`.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        found, step = dict(content["config"]), content["step"]
    except UNREADABLE as error:
        raise no_state(path, str(error).partition("\n")[0]) from error
    for name, value in identity.items():
        if found.get(name) != value:
            raise ValueError(
                f"{path} is of a run with {name}={found.get(name)!r}, not {value!r}; delete it to start over"
            )
    if not isinstance(step, int) or not 0 <= step <= found.get("steps", step):
        raise no_state(path, f"its step is {step!r}")
    return content


def no_state(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path}: is no saved state of this run; delete it to start over: {reason}")


def identity_of(config: TrainConfig, **more) -> dict:
    """What a run must have in common with one that it goes on from."""
    return {name: value for name, value in asdict(config).items() if name not in NOT_COMPUTED} | more


def train(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    config: TrainConfig,
    state_file: Path,
    *,
    title: str = "training",
    stop_after: int | None = None,
    every: tuple[int, Callable[[int], None]] | None = None,
    identity: dict | None = None,
    guessing: float = math.inf,
) -> bool:
    """Run `config.steps` steps of minimising `loss_of(step)`, a scalar that must depend on nothing but step
    and model.

    Resumes from `state_file` if it exists, with the same result as an uninterrupted run. `stop_after` stops
    at that step with the state saved. `every` = (n, f) calls f(step) each n steps. `identity`: what else than
    `config` a resumed run must have in common with the saved one. `guessing`: see `Divergence`. True when all
    steps are done. Raises FloatingPointError when the loss diverges, ValueError when `state_file` is of a
    different run, and after Ctrl-C KeyboardInterrupt with a message, once the step is finished and the state
    saved.
    """
    config = config.with_precision()
    identity = identity_of(config, **(identity or {}))
    state = State(model, optimizers(model, config))
    if state_file.is_file():
        state.load(state_file, identity)
    report, divergence = Reporter(title, state.step, config), Divergence(config, guessing)
    last = min(config.steps, stop_after if stop_after is not None else config.steps)
    with report, Interrupt() as interrupt:
        while state.step < last:
            loss = train_step(state, loss_of, config, divergence)
            state.step += 1
            report(state.step, loss)
            due = state.step % config.checkpoint_every == 0 or state.step == last
            if due:
                state.save(state_file, identity)
            if every and state.step % every[0] == 0:
                every[1](state.step)
            if interrupt.asked and state.step < config.steps:
                if not due:
                    state.save(state_file, identity)
                raise KeyboardInterrupt(f"{state_file}: holds the run after step {state.step}")
    return state.step == config.steps


def train_step(
    state: State, loss_of: Callable[[int], Tensor], config: TrainConfig, divergence: Divergence
) -> float:
    """One optimizer step; the loss before it."""
    loss, share = loss_of(state.step), rate(config, state.step)
    value = loss.item()
    divergence.check_loss(value, state.step, share)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.gradient_clip)
    divergence.check_gradient(norm.item(), state.step, share)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return value
