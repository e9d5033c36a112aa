"""The training loop: optimizers, schedule, stopping and resuming."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edlm_engine.convert.config import TrainConfig
from edlm_engine.convert.divergence import Divergence
from edlm_engine.convert.interrupt import Interrupt
from edlm_engine.convert.reporter import Reporter
from edlm_engine.files import replace_file

STATE_FILE = "resume.pt"  # in the folder to be written
# Where a run computes and how often it saves does not change what is computed.
NOT_COMPUTED = ("device", "compile", "checkpoint_every")
# What torch raises for files that it did not write, or wrote in part, or with other contents.
UNREADABLE = (
    RuntimeError, pickle.UnpicklingError, EOFError, OSError, KeyError, TypeError, ValueError, AttributeError,
)  # fmt: skip


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
