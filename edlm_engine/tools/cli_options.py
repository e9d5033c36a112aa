"""Options that several commands share."""

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
