"""The command line: edlm generate, demo, convert, quantize, tune, bench, info."""

from os.path import realpath
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .. import __version__
from ..files import try_writing
from ..outputs import Generation
from ..printing import count, one_line
from .cli_options import (
    DECODING,
    OUTPUT,
    BlockOption,
    DelayOption,
    DeviceOption,
    DtypeOption,
    MaskOption,
    ModelArgument,
    ModelOption,
    PrefillOption,
    QuantizationOption,
    SteppingOption,
    ThreadsOption,
    from_the_hub,
)
from .terminal import read_prompt, run_command, say, unicode_argument

app = typer.Typer(
    help="Block-diffusion language models of the Efficient-DLM kind.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _output(help: str, *names: str):
    return typer.Option(*names, help=help, rich_help_panel=OUTPUT)


def _decoding(help: str):
    return typer.Option(help=help, rich_help_panel=DECODING)


def _print_version(wanted: bool):
    if wanted:
        print(f"edlm_engine {__version__}")
        raise typer.Exit


@app.callback()
def edlm(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version.")
    ] = False,
):
    """Block-diffusion language models of the Efficient-DLM kind."""


def summary(result: Generation) -> str:
    """One line on what a request took."""
    tokens = len(result.token_ids)
    return (
        f"{count(tokens, 'token')} in {count(result.nfe, 'forward')} "
        f"({result.tokens_per_forward:.2f} tokens per forward), {result.seconds:.2f} s, "
        f"{tokens / result.seconds:.0f} tokens/s, finished by {result.finish_reason}"
    )


@app.command()
@from_the_hub
def generate(
    hub: dict,
    prompt: Annotated[str, typer.Argument(help="The prompt; '-' reads standard input.")],
    model: ModelOption = "edlm-tiny",
    max_new_tokens: Annotated[int | None, _decoding("Most tokens to generate; default: 128.")] = None,
    threshold: Annotated[
        float | None, _decoding("Commit at this confidence; default: 0.9; 0: fixed schedule.")
    ] = None,
    steps_per_block: Annotated[int | None, _decoding("Denoising steps per block.")] = None,
    policy: Annotated[str | None, _decoding("Instead of both, say entropy_bound:0.15.")] = None,
    temperature: Annotated[float | None, _decoding("0, the default, is greedy.")] = None,
    top_k: Annotated[int | None, _decoding("Draw among the k likeliest; 0: off.")] = None,
    top_p: Annotated[float | None, _decoding("Draw among the likeliest of this mass; 1: off.")] = None,
    seed: Annotated[int | None, _decoding("Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, _decoding("End before this text; repeatable.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt through the chat template.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Show the masks turning into tokens.")] = False,
    delay: DelayOption = 0.1,
    block_length: BlockOption = None,
    mask_token_id: MaskOption = None,
    prefill: PrefillOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
    settings: Annotated[Path | None, _decoding("File with defaults, as edlm tune writes it.")] = None,
):
    """Complete a prompt."""
    from .. import Engine
    from .live import print_text, show_live

    prompt = read_prompt(prompt)
    params = {
        "max_new_tokens": max_new_tokens, "steps_per_block": steps_per_block, "policy": policy,
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed,
        "stop": tuple(unicode_argument("--stop", text) for text in stop or ()) or None,
    }  # fmt: skip
    params = {name: value for name, value in params.items() if value is not None}
    if threshold is not None:
        params["threshold"] = threshold or None
    options = {"device": device, "dtype": dtype, "prefill": prefill, "quantization": quantization}
    options |= {"settings": settings, "block_length": block_length, "mask_token_id": mask_token_id}
    with Engine(model, **options, **hub) as engine:
        messages = [{"role": "user", "content": prompt}]
        if live:
            chunks = engine.stream_chat(messages, **params) if chat else engine.stream(prompt, **params)
            shown = engine.chat_prompt(messages) if chat else prompt
            result = show_live(shown, chunks, engine.tokenizer, delay)
        else:
            result = engine.chat(messages, **params) if chat else engine.generate(prompt, **params)
            print_text(result.text)
    say(summary(result), "dim")


@app.command()
@from_the_hub
def demo(
    hub: dict,
    model: ModelOption = "edlm-tiny",
    delay: DelayOption = 0.25,
):
    """Watch the bundled model solve its example problems, block by block."""
    from .. import Engine
    from .examples import read_examples
    from .live import show_live

    console = Console(highlight=False)
    with Engine(model, **hub) as engine:
        for example in read_examples(engine.path):
            console.rule(escape(one_line(example["task"], 40)))
            chunks = engine.stream(example["prompt"], max_new_tokens=160)
            result = show_live(example["prompt"], chunks, engine.tokenizer, delay)
            slowed = f"; shown at {delay:g} s per step" if console.is_terminal else ""
            console.print(f"\n{summary(result)}{slowed}", style="dim", soft_wrap=True)
            verdict = "as expected" if result.text == example["text"] else "NOT the expected text"
            console.print(f"{verdict}\n", style="green" if verdict == "as expected" else "bold red")


@app.command()
@from_the_hub
def convert(
    hub: dict,
    base: Annotated[str, typer.Argument(help="Autoregressive: a folder, bundled name or hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; the same call resumes a stopped run.")],
    data: Annotated[Path, typer.Argument(help=".jsonl or .npy file of documents, or a folder of them.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1000,
    rows: Annotated[int, typer.Option(help="Rows in a batch.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens in a row.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="AdamW's peak; decays to a tenth.")] = 1e-5,
    block_length: Annotated[int, typer.Option(help="Block length in training.")] = 16,
    half_life_ratio: Annotated[float, typer.Option(help="Position-dependent masking; 0: uniform.")] = 0.1,
    mask_token_id: MaskOption = None,
    device: DeviceOption = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of products: bfloat16, float32; auto: what the device is fast in.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of data order and noise.")] = 0,
):
    """Turn an autoregressive checkpoint into a block-diffusion one (the paper's training).

    Ctrl-C saves the run in OUT, and the same command goes on from there.
    """
    from ..convert import ConversionConfig
    from ..convert import convert as run

    precisions = {"auto": None, "bfloat16": True, "float32": False}
    if dtype not in precisions:
        raise ValueError(f"dtype must be one of {', '.join(precisions)}, got {dtype!r}")

    config = ConversionConfig(
        steps=steps, rows=rows, length=length, learning_rate=learning_rate,
        final_learning_rate=learning_rate / 10, block_size=block_length,
        half_life_ratio=half_life_ratio or None, mask_token_id=mask_token_id, device=device, seed=seed,
        bf16=precisions[dtype],
    )  # fmt: skip
    try:
        finished = run(base, out, data, config, hub=hub)
    except FloatingPointError as error:
        raise ValueError(str(error)) from error
    except KeyboardInterrupt as stop:
        saved = f"{out / 'resume.pt'}: holds the run as it was last saved"
        saved = str(stop) or (saved if (out / "resume.pt").exists() else "")
        print(f"{saved}; the same command goes on from there" if saved else "stopped; nothing was saved yet")
        raise typer.Exit(130) from None
    if finished:
        print(f"{out}: a block-diffusion checkpoint; try: edlm generate -m {out} PROMPT")


@app.command()
@from_the_hub
def quantize(
    hub: dict,
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="New folder to write.")],
    kind: Annotated[str, typer.Option("--type", help="int8, or for GPUs fp8.")] = "int8",
):
    """Write a checkpoint with int8 or fp8 matrices: half the size, ready to load."""
    from ..checkpoints.folder import resolve
    from .quantize import quantize_checkpoint

    quantize_checkpoint(resolve(model, hub) if hub else model, out, kind=kind)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"{out}: {size / 1e6:,.1f} MB in {kind}; try: edlm generate -m {out} PROMPT")


@app.command()
@from_the_hub
def tune(
    hub: dict,
    model: ModelArgument = "edlm-tiny",
    prompts: Annotated[Path | None, typer.Option(help=".txt, a prompt a line, or .jsonl.")] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="What to try, say entropy_bound or factor:0.5,1; repeatable.")
    ] = None,
    loss: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Of tokens that may differ.")
    ] = 0.01,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens per prompt.")] = 128,
    output: Annotated[Path, _output("Settings file to write.")] = Path("edlm_settings.json"),
    plot: Annotated[Path | None, _output("Image to write, .png, .svg, .pdf, ...")] = None,
    threads: ThreadsOption = None,
    mask_token_id: MaskOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
):
    """Find the fastest block length and commit policy for a model on this machine."""
    from .. import Engine
    from ..progress import progress_bar
    from . import tune_report
    from .tune import candidates, read_prompts, steps_of
    from .tune import tune as run

    try_writing(output)
    if plot:
        if realpath(plot) == realpath(output):
            raise ValueError(f"{plot}: --output and --plot are the same file; give two names")
        tune_report.try_plotting(plot)
        try_writing(plot)
    policies = [tried for text in policy or ["threshold"] for tried in candidates(text)]
    texts = read_prompts(prompts, Path()) if prompts else None
    options = {"device": device, "dtype": dtype, "quantization": quantization, "num_threads": threads}
    with Engine(model, mask_token_id=mask_token_id, max_batch_size=1, **options, **hub) as engine:
        texts = texts or read_prompts(None, engine.path)
        with progress_bar(f"tuning {engine.path.name}", steps_of(engine, policies)) as tick:
            found = run(engine, texts, loss=loss, max_new_tokens=max_new_tokens, policies=policies, tick=tick)
        tune_report.print_tables(Console(highlight=False), found)
        tune_report.save(output, engine, found)
        print(f"{output}: use it with Engine({model!r}, settings={str(output)!r})")
        if plot:
            tune_report.plot(plot, engine.path.name, found)
            print(plot)


@app.command()
@from_the_hub
def bench(
    hub: dict,
    model: ModelArgument = "edlm-tiny",
    prefix: Annotated[int, typer.Option(min=1, help="Positions before the block.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps per block of the generation.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the generation.")] = 64,
    dummy: Annotated[bool, typer.Option("--dummy", help="Random weights: config.json is enough.")] = False,
    output: Annotated[Path | None, _output("File to write.", "--json")] = None,
    threads: ThreadsOption = None,
    block_length: BlockOption = None,
    mask_token_id: MaskOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
    stepping: SteppingOption = "auto",
):
    """Time a model's forwards on this machine, and what the engine adds to them."""
    from .. import Engine
    from .bench_report import measure, print_tables, save

    if output:
        try_writing(output)
    options = {"device": device, "dtype": dtype, "quantization": quantization, "num_threads": threads}
    options |= {"block_length": block_length, "mask_token_id": mask_token_id, "max_batch_size": 1}
    options["stepping"] = stepping
    with Engine(model, load_format="dummy" if dummy else "auto", **options, **hub) as engine:
        found = measure(engine, prefix, steps, max_new_tokens)
    print_tables(Console(highlight=False), found)
    if output:
        save(output, found)
        print(output)


@app.command()
@from_the_hub
def info(hub: dict, model: Annotated[str | None, typer.Argument(help="A model to describe as well.")] = None):
    """Show the build, the machine and the bundled models; or a model's configuration."""
    from ..checkpoints.folder import resolve
    from .info import build_rows, model_rows

    if model and hub:
        model = str(resolve(model, hub))
    console = Console(highlight=False)
    for key, value in [*build_rows(), *(model_rows(model) if model else [])]:
        console.print(f"[bold]{key:<16}[/bold] {escape(one_line(value))}", soft_wrap=True)


def main():
    """Entry point."""
    run_command(lambda: app(prog_name="edlm"))
