"""The paper's ablations at this scale: short conversions of the same base, same tokens, same seed.

Table 1: attention pattern, clean context, token shift (uniform masking). Table 2: uniform against
position-dependent masking along the accuracy-TPF curve. Fig. 3: training block against evaluation block
(uniform masking). Not every attention pattern has a clean half for views to share, so Table 1 noises each row
once and whole; the others train as the final model does.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

from evaluate import engine_accuracy
from generate import Decoding
from quick import accuracy, line, sample
from results import write_json
from tokenizers import Tokenizer

from edlm_engine import Engine
from edlm_engine.convert import ConversionConfig, convert
from edlm_engine.convert.checkpoint import load_decoder

STEPS = 150
COUNT = 300
BLOCKS = (4, 8, 16, 32)
THRESHOLDS = (None, 0.9, 0.7, 0.5, 0.3)
UNIFORM = {"half_life_ratio": None}
PLAIN = {**UNIFORM, "rows": 24, "views": 1, "noisy_length": None}
VIEWS = {"rows": 12, "views": 4, "noisy_length": 96}  # room for the longest blocks
# Without blocks there is one noise level for the whole row, as those models are trained.
BIDIRECTIONAL = {**PLAIN, "attention": "bidirectional", "sequence_noise": True}
NO_CLEAN = {**PLAIN, "attention": "no_clean_context"}
TABLE_1 = {
    "b": {**BIDIRECTIONAL, "token_shift": True},
    "c": BIDIRECTIONAL,
    "d": {**NO_CLEAN, "token_shift": True},
    "e": {**NO_CLEAN, "token_shift": True, "steps": 2 * STEPS},
    "f": {**PLAIN, "token_shift": True},
    "g": PLAIN,
}
TABLE_2 = {
    "uniform": {**VIEWS, **UNIFORM},
    "0.25": {**VIEWS, "half_life_ratio": 0.25},
    "0.1": {**VIEWS, "half_life_ratio": 0.1},
}


def converted(work: Path, config: ConversionConfig) -> Path:
    """The folder of the base converted under `config`; trained unless it is there."""
    parts = [
        config.attention,
        f"block{config.block_size}",
        f"lambda{config.half_life_ratio}",
        f"steps{config.steps}",
        f"views{config.views}",
    ]
    out = work / "ablations" / "-".join([*parts, *(["shift"] if config.token_shift else [])])
    if not (out / "config.json").is_file():
        print(out.name, flush=True)
        convert(work / "base", out, work / "data", config)
    return out


def measured(folder: Path, tokenizer: Tokenizer, how: Decoding) -> dict:
    """Accuracy with its binomial standard error; by the engine, where the engine runs such a model."""
    problems = sample(COUNT)
    if how.bidirectional or how.shift:
        result = accuracy(load_decoder(folder)[0].eval(), tokenizer, problems, how)
    else:
        with Engine(str(folder), block_length=how.block) as engine:
            result = engine_accuracy(engine, problems, how.threshold)
    result["standard_error"] = math.sqrt(result["exact"] * (1 - result["exact"]) / COUNT)
    print(f"  {folder.name} block {how.block} threshold {how.threshold}: {line(result)}", flush=True)
    return result


def ablate_all(work: Path, results: Path, conversion: ConversionConfig) -> None:
    """results/ablations.json, a cell at a time; cells that are there are not measured again."""
    short = replace(conversion, steps=STEPS, cosine_steps=None, cooldown_steps=0, checkpoint_every=STEPS)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    path = results / "ablations.json"
    budget = {"count": COUNT, "steps": STEPS, "length": short.length, "seed": short.seed}
    budget |= {"table1": PLAIN, "others": VIEWS}
    found = json.loads(path.read_text()) if path.is_file() else {"budget": budget, "cells": {}}

    def cell(name: str, overrides: dict, how: Decoding) -> None:
        if name not in found["cells"]:
            folder = converted(work, replace(short, **overrides))
            found["cells"][name] = {**measured(folder, tokenizer, how), "threshold": how.threshold}
            write_json(path, found)

    for row, overrides in TABLE_1.items():
        bidirectional = overrides.get("attention") == "bidirectional"
        how = Decoding(16, None, bidirectional, overrides.get("token_shift", False))
        cell(f"table1/{row}", overrides, how)
    for name, overrides in TABLE_2.items():
        for threshold in THRESHOLDS:
            cell(f"table2/{name}/{threshold}", overrides, Decoding(16, threshold))
    for training in BLOCKS:
        for evaluation in BLOCKS:
            overrides = {**VIEWS, **UNIFORM, "block_size": training}
            cell(f"fig3/{training}/{evaluation}", overrides, Decoding(evaluation))
