"""From a seed to the bundled model: python recipes/tiny/run.py --all, or any of its stages by name.

Stages, in order: data, base, convert, evaluate, bundle, ablate, report. Each skips what is done and goes on
where it was stopped. Everything it makes on the way is in recipes/tiny/work/.
"""

import edlm_engine  # noqa: F401 (it sets OpenMP's wait policy, which counts only before torch is loaded)

# isort: split

import argparse
import time
from pathlib import Path

import ablate
import base
import bundle
import evaluate
import plots
import quick
import report
from generate import AUTOREGRESSIVE, Decoding
from tokenizers import Tokenizer

from edlm_engine.convert import ConversionConfig, convert
from edlm_engine.convert.train import TrainConfig

HERE = Path(__file__).resolve().parent
WORK, RESULTS = HERE / "work", HERE / "results"
BASE_TRAINING = TrainConfig(
    steps=2350,
    rows=16,
    length=256,
    learning_rate=3e-3,
    warmup_steps=50,
    cosine_steps=3000,
    cooldown_steps=600,
    optimizer="muon",
    muon_learning_rate=0.02,
    prompt_weight=0.1,
    compile=True,
    checkpoint_every=250,
)
CONVERSION = ConversionConfig(
    steps=5000,
    rows=16,
    length=128,
    learning_rate=2e-3,
    final_learning_rate=0.0,
    warmup_steps=20,
    cosine_steps=6000,
    cooldown_steps=1200,
    optimizer="muon",
    muon_learning_rate=0.02,
    prompt_weight=0.03,
    compile=True,
    checkpoint_every=200,
    block_size=16,
    half_life_ratio=0.1,
    align_blocks=True,
    views=4,
    noisy_length=80,
    seed=1,
)


def make_data() -> None:
    base.write_data(WORK / "data", seed=0)
    base.write_tokenizer(WORK / "tokenizer", seed=0)


def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(WORK / "tokenizer" / "tokenizer.json"))


def train_base() -> None:
    watch = (200, quick.reporter(tokenizer(), AUTOREGRESSIVE))
    base.train_base(
        WORK / "base",
        WORK / "base-run",
        WORK / "data" / "train.jsonl",
        WORK / "tokenizer",
        BASE_TRAINING,
        watch,
    )


def convert_base() -> None:
    if (WORK / "converted" / "config.json").is_file():
        return
    watch = (400, quick.reporter(tokenizer(), Decoding(block=16, threshold=0.9), count=48))
    convert(WORK / "base", WORK / "converted", WORK / "data", CONVERSION, every=watch)


def make_report() -> None:
    plots.plot_all(RESULTS)
    report.write_report(HERE / "README.md", RESULTS)


STAGES = {
    "data": make_data,
    "base": train_base,
    "convert": convert_base,
    "evaluate": lambda: evaluate.evaluate_all(WORK, RESULTS),
    "bundle": lambda: bundle.bundle(WORK, RESULTS),
    "ablate": lambda: ablate.ablate_all(WORK, RESULTS, CONVERSION),
    "report": make_report,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], help="the stages to run")
    parser.add_argument("--all", action="store_true", help="run every stage")
    arguments = parser.parse_args()
    if not arguments.all and not arguments.stages:
        parser.error("name stages, or --all")
    for name, stage in STAGES.items():
        if arguments.all or name in arguments.stages:
            start = time.perf_counter()
            stage()
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
