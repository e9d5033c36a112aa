"""Put the converted model and its autoregressive base into the package, with examples and model cards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from generate import Decoding, generate
from quick import sample
from results import write_json
from tokenizers import Tokenizer

from edlm_engine.convert.checkpoint import load_decoder
from edlm_engine.files import replace_file

ASSETS = Path(__file__).resolve().parents[2] / "edlm_engine" / "assets"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
LIMIT = 12 << 20  # bytes of one model file in the package
EXAMPLES_SEED = 7


def copy(source: Path, name: str) -> None:
    size = (source / "model.safetensors").stat().st_size
    if size >= LIMIT:
        raise ValueError(f"{source}: model.safetensors has {size} bytes, over the limit of {LIMIT}")
    (ASSETS / name).mkdir(parents=True, exist_ok=True)
    for file in FILES:
        replace_file(ASSETS / name / file, lambda path, file=file: shutil.copyfile(source / file, path))


def examples(folder: Path, each: int = 2) -> list[dict]:
    """Held-out problems, `each` of every task, which the model answers as expected at threshold 0.9."""
    model, config = load_decoder(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    problems = sample(64, EXAMPLES_SEED)
    prompts = [tokenizer.encode(problem.prompt).ids for problem in problems]
    how = Decoding(config["block_size"], 0.9)
    outputs, _ = generate(model.eval(), prompts, config["mask_token_id"], config["eos_token_id"], how)
    eos = config["eos_token_id"]
    texts = [tokenizer.decode([token for token in output if token != eos]) for output in outputs]
    right = [problem for problem, text in zip(problems, texts, strict=True) if text == problem.completion]
    chosen = []
    for task in dict.fromkeys(problem.task for problem in problems):
        longest = sorted((p for p in right if p.task == task), key=lambda p: -len(p.completion))
        chosen += longest[:each]
    return [{"task": p.task, "message": p.message, "prompt": p.prompt, "text": p.completion} for p in chosen]


def score_table(final: dict) -> str:
    tasks = list(final["base"]["tasks"])
    rows = [("AR base", final["base"])]
    rows += [
        ("one token per forward" if r["threshold"] is None else f"threshold {r['threshold']}", r)
        for r in final["converted"]
        if r["threshold"] in (None, 0.99, 0.95, 0.9, 0.7)
    ]
    lines = ["| | TPF | all | " + " | ".join(tasks) + " |", "| --- |" + " ---: |" * (len(tasks) + 2)]
    for name, result in rows:
        cells = [f"{100 * result['tasks'][task]['exact']:.1f}" for task in tasks]
        lines.append(
            f"| {name} | {result['tpf']:.2f} | {100 * result['exact']:.1f} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


CARD = """# {name}

{what} It was made by `recipes/tiny` of edlm_engine, from seed 0, on two CPU cores.

- **Size**: {parameters:,} parameters; {layers} layers, hidden size {hidden}, {heads} query and {kv} key/value
  heads of {head_dim}, tied head, vocabulary of {vocab} (byte-level BPE); {megabytes:.1f} MB in bf16.
- **Data**: synthetic problems: arithmetic word problems worked step by step, small Python functions from a
  docstring, JSON extraction from a sentence, list operations. It knows nothing else.
- **Prompt**: `Q: <message>\\nA: `, which is also the chat template. `examples.json` has some.
- **Licence**: as the package.
{accuracy}"""


def card(name: str, what: str, final: dict | None) -> None:
    config = json.loads((ASSETS / name / "config.json").read_text())
    model, _ = load_decoder(ASSETS / name)
    accuracy = ""
    if final:
        error = 100 * (final["base"]["exact"] * (1 - final["base"]["exact"]) / final["count"]) ** 0.5
        accuracy = (
            f"\nExact answers in percent on {final['count']} held-out problems (standard error of the base's "
            f"total {error:.1f} points); TPF is tokens per denoising forward:\n\n{score_table(final)}\n"
        )
    text = CARD.format(
        name=name,
        what=what,
        parameters=sum(weight.numel() for weight in model.parameters()),
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        vocab=config["vocab_size"],
        megabytes=(ASSETS / name / "model.safetensors").stat().st_size / 1e6,
        accuracy=accuracy,
    )
    (ASSETS / name / "README.md").write_text(text)


def bundle(work: Path, results: Path) -> None:
    """assets/edlm-tiny and assets/edlm-tiny-ar; the cards have the accuracies once `evaluate` has run."""
    copy(work / "converted", "edlm-tiny")
    copy(work / "base", "edlm-tiny-ar")
    chosen = examples(work / "converted")
    for name in ("edlm-tiny", "edlm-tiny-ar"):
        write_json(ASSETS / name / "examples.json", chosen)
    path = results / "final.json"
    final = json.loads(path.read_text()) if path.is_file() else None
    block = json.loads((work / "converted" / "config.json").read_text())["block_size"]
    what = f"A block-diffusion language model (block length {block}), converted from `edlm-tiny-ar` by the"
    card("edlm-tiny", f"{what} recipe of Efficient-DLM (arXiv 2512.14067).", final)
    card("edlm-tiny-ar", "The autoregressive Qwen3-shaped base of `edlm-tiny`.", final)
