"""What int8 costs: exact answers of edlm-tiny, and the error of a real shape's logits with random weights.

python bench/int8_error.py    # bench/results/DATE-int8.json, about two minutes
"""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "recipes" / "tiny")]

from evaluate import engine_accuracy  # noqa: E402
from quick import sample  # noqa: E402
from shapes import write_config  # noqa: E402

from edlm_engine import Engine  # noqa: E402
from edlm_engine.models.heads import Head  # noqa: E402

COUNT, ROWS = 1000, 32
THRESHOLDS = (None, 0.99, 0.95, 0.9)
VARIANTS = {"bfloat16": {}, "int8": {"quantization": "int8"}, "int8, head bfloat16": {"quantization": "int8"}}


def model_of(engine: Engine):
    return engine._loop._runner.model


def tiny_accuracy() -> dict:
    """{variant: {threshold: {"exact", "tpf"}}} on the held-out problems."""
    problems, found = sample(COUNT), {}
    for name, options in VARIANTS.items():
        with Engine("edlm-tiny", dtype="bfloat16", max_batch_size=64, **options) as engine:
            if name.endswith("head bfloat16"):
                model_of(engine).head = Head(model_of(engine).embedding)
            results = {str(t): engine_accuracy(engine, problems, t) for t in THRESHOLDS}
        found[name] = {t: {key: round(r[key], 4) for key in ("exact", "tpf")} for t, r in results.items()}
        print(f"edlm-tiny {name}: {found[name]}", flush=True)
    return found


def logits(folder: Path, **options) -> torch.Tensor:
    """fp32 [ROWS, vocab]: the first denoising step behind a prompt of 64, through the head in bfloat16 at
    most, so that what the layers lose is seen."""
    seen = []
    with Engine(folder, load_format="dummy", kv_cache_tokens=512, **options) as engine:
        model, forward = model_of(engine), model_of(engine).forward
        model.forward = lambda *arguments: seen.append(forward(*arguments).clone()) or forward(*arguments)
        prompt = [(31 * i) % 151000 for i in range(64)]
        engine.generate(prompt, max_new_tokens=ROWS, threshold=None, steps_per_block=1, ignore_eos=True)
        return seen[0].float() @ model.embedding.float().T


def logit_errors(shape: str) -> dict:
    """{variant: figures} against float32: root mean square error over the logits' deviation, mean KL
    divergence in nats, and the largest difference of a row's confidence in float32's best token."""
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder) / shape, shape)
        exact = logits(config, dtype="float32")
        found = {}
        for name, options in (("bfloat16", {}), ("int8", {"quantization": "int8"})):
            other = logits(config, dtype="bfloat16", **options)
            p, q = exact.log_softmax(-1), other.log_softmax(-1)
            best = exact.argmax(-1, keepdim=True)
            found[name] = {
                "rms_error_over_deviation": ((other - exact).square().mean().sqrt() / exact.std()).item(),
                "kl_nats": (p.exp() * (p - q)).sum(-1).mean().item(),
                "largest_confidence_difference": (p.exp() - q.exp()).gather(1, best).abs().max().item(),
                "same_best_token": (other.argmax(-1, keepdim=True) == best).float().mean().item(),
            }
            print(f"{shape} {name}: {found[name]}", flush=True)
    return found


def main() -> None:
    date = datetime.date.today().isoformat()
    result = {
        "date": date,
        "torch": torch.__version__,
        "edlm_tiny_held_out": tiny_accuracy(),
        "logits_random_weights": {"0.6B": logit_errors("0.6B")},
    }
    path = HERE / "results" / f"{date}-int8.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
