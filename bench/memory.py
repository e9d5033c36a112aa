"""Peak resident memory while a checkpoint is loaded and generates, beside what its weights and cache need.

python bench/memory.py [SHAPE]    # bench/results/DATE-memory.json; writes a checkpoint under build/ first
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from shapes import SHAPES, write_config

from edlm_engine.checkpoints.checkpoint import Checkpoint
from edlm_engine.checkpoints.dummy import DummyTensors
from edlm_engine.tools.quantize import quantize_checkpoint

HERE = Path(__file__).resolve().parent
CACHE_TOKENS, PROMPT = 1024, 512

PROBE = """
import json, sys
from edlm_engine import Engine
import torch

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

torch.mm(torch.ones(64, 64), torch.ones(64, 64))
before = status("VmRSS")
folder, tokens, prompt = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
engine = Engine(folder, kv_cache_tokens=tokens, max_batch_size=1, **json.loads(sys.argv[4]))
loaded = status("VmHWM")
engine.generate(list(range(prompt)), max_new_tokens=64, threshold=None, steps_per_block=8, ignore_eos=True)
model, cache = engine._loop._runner.model, engine._loop._runner.cache
held = {t.data_ptr(): t.nbytes for t in [model.embedding, model.head.weight, model._rope]}
for layer in model.layers:
    for name in layer.__slots__:
        part = getattr(layer, name)
        tensor = getattr(part, "weight", part)
        if tensor is not None:
            held[tensor.data_ptr()] = tensor.nbytes
print(json.dumps({"before": before, "loaded": loaded - before, "peak": status("VmHWM") - before,
                  "weights": sum(held.values()), "kv": sum(t.nbytes for t in cache.keys + cache.values)}))
"""


def write_checkpoint(folder: Path, shape: str) -> Path:
    """Random bf16 weights as files, once."""
    if (folder / "model.safetensors").exists():
        return folder
    write_config(folder, shape)
    config, source = Checkpoint(folder, with_tensors=False).model, DummyTensors()
    hidden, inner = config.hidden_size, config.intermediate_size
    tensors = {"model.embed_tokens.weight": source.tensor("embed", (config.vocab_size, hidden))}
    for i in range(config.num_layers):
        layer = f"model.layers.{i}."
        shapes = {
            "self_attn.q_proj": (config.q_size, hidden), "self_attn.k_proj": (config.kv_size, hidden),
            "self_attn.v_proj": (config.kv_size, hidden), "self_attn.o_proj": (hidden, config.q_size),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
            "self_attn.q_norm": (config.head_dim,), "self_attn.k_norm": (config.head_dim,),
        }  # fmt: skip
        for name, size in shapes.items():
            tensors[f"{layer}{name}.weight"] = source.tensor(name, size).to(torch.bfloat16)
    tensors["model.norm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    save_file(tensors, str(folder / "model.safetensors"))
    return folder


def probe(folder: Path, **options) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, folder, str(CACHE_TOKENS), str(PROMPT), json.dumps(options)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    needed = found["weights"] + found["kv"]
    megabytes = {key: round(value / 1e6, 1) for key, value in found.items()}
    return {"megabytes": megabytes, "loading_over_needed": round(found["loaded"] / needed, 3),
            "peak_over_needed": round(found["peak"] / needed, 3)}  # fmt: skip


def main() -> None:
    shape = sys.argv[1] if len(sys.argv) > 1 else "0.6B"
    if shape not in SHAPES:
        sys.exit(f"shape {shape!r} is unknown; known: {', '.join(SHAPES)}")
    folder = write_checkpoint(HERE.parent / "build" / "memory" / shape, shape)
    int8 = folder.with_name(f"{shape}-int8")
    if not int8.exists():
        quantize_checkpoint(folder, int8)
    ways = {
        "bfloat16": (folder, {"dtype": "bfloat16"}),
        "int8, quantised while loading": (folder, {"dtype": "bfloat16", "quantization": "int8"}),
        "int8, quantised before": (int8, {"dtype": "bfloat16"}),
    }
    found = {name: probe(path, **options) for name, (path, options) in ways.items()}
    for name, figures in found.items():
        print(f"{shape} {name}: {figures}")
    date = datetime.date.today().isoformat()
    result = {"date": date, "torch": torch.__version__, "shape": shape, "cache_tokens": CACHE_TOKENS, **found}
    (HERE / "results" / f"{date}-memory.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
