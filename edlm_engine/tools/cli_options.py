"""Options that several commands share."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated

import typer

ENGINE, DECODING, OUTPUT = "Model and engine", "Decoding", "Output"  # panels of the help


def _engine(help: str, **options):
    return typer.Option(help=help, rich_help_panel=ENGINE, **options)


ModelArgument = Annotated[str, typer.Argument(help="Folder, bundled name or hub id.")]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Folder, bundled name or hub id.", rich_help_panel=ENGINE)
]
DeviceOption = Annotated[str, _engine("auto, cpu or cuda.")]
DtypeOption = Annotated[str, _engine("auto, bfloat16, float32, or on a GPU float16.")]
BlockOption = Annotated[int | None, _engine("Block length; default: the checkpoint's.")]
MaskOption = Annotated[int | None, _engine("Mask token id, if the checkpoint does not say.")]
QuantizationOption = Annotated[str | None, _engine("int8, or on a GPU fp8.")]
SteppingOption = Annotated[str, _engine("auto, eager, direct, graph or device.")]
PrefillOption = Annotated[str | None, _engine("block_causal, bidirectional or causal.")]
ThreadsOption = Annotated[int | None, _engine("Default: the physical cores.")]
DelayOption = Annotated[
    float, typer.Option(min=0.0, max=60.0, metavar="SECONDS", help="To show each denoising step.")
]

_HUB_OPTIONS = {
    "revision": (str | None, "Branch, tag or commit."),
    "token": (str | None, "Login, instead of HF_TOKEN or hf auth login."),
    "cache_dir": (Path | None, "Folder of the cache."),
    "local_files_only": (bool, "Ask nobody, take what the cache has."),
}


def from_the_hub(command: Callable) -> Callable:
    """Adds the options for a model that is a hub id to a command, which gets those that are given as the dict
    `hub`."""

    @wraps(command)
    def with_hub(**arguments):
        given = {name: arguments.pop(name) for name in _HUB_OPTIONS}
        return command(hub={name: value for name, value in given.items() if value}, **arguments)

    signature = inspect.signature(command)
    parameters = [parameter for name, parameter in signature.parameters.items() if name != "hub"]
    for name, (kind, text) in _HUB_OPTIONS.items():
        flag = f"--{name.replace('_', '-')}"  # without --no-local-files-only
        option = Annotated[kind, typer.Option(flag, help=text, rich_help_panel="If MODEL is a hub id")]
        default = False if kind is bool else None
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option)
        )
    with_hub.__signature__ = signature.replace(parameters=parameters)
    with_hub.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_hub
