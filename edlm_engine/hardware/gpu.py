"""What must be right about a GPU before an engine starts on it, and in words what is not."""

import re

import torch

from ..config import ModelConfig

HEAD_SIZES = (64, 128)  # of the attention kernels
FP8_CAPABILITY = (8, 9)  # the first whose tensor cores take float8


def why_unusable(build: dict, config: ModelConfig | None = None) -> str | None:
    """Why this build (as from ops.build_info()) cannot use a GPU here, for that model; None if it can."""
    if not build["cuda"]:
        return "this build has no CUDA kernels"
    try:
        torch.cuda.init()
        capability = torch.cuda.get_device_capability()
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # no driver, too old a driver, no device, a CPU build of torch
        return f"torch finds no usable GPU: {str(error).split('. ')[0].splitlines()[0].rstrip('.')}"
    if not covers(build["cuda_architectures"], capability):
        kernels = ", ".join(build["cuda_architectures"])
        name, version = torch.cuda.get_device_name(), "{}.{}".format(*capability)
        return f"{name} has compute capability {version}, this build has kernels for {kernels} only"
    if config and config.head_dim not in HEAD_SIZES:
        sizes = " and ".join(map(str, HEAD_SIZES))
        return f"the model's head size is {config.head_dim}, there are kernels for {sizes}"
    return None


def covers(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Whether kernels for these run on a GPU of that compute capability.

    architectures: as CMAKE_CUDA_ARCHITECTURES names them. "80-real" is machine code for 8.0 and later minors
    of 8; "80" also carries code that the driver compiles for all later ones; "90a" runs on 9.0 alone.
    """
    for architecture in architectures:
        number, exact, real = re.fullmatch(r"(\d+)([af]?)(-real)?", architecture).groups()
        built = divmod(int(number), 10)
        if exact:
            fits = capability == built
        else:
            fits = capability >= built and (not real or capability[0] == built[0])
        if fits:
            return True
    return False


def why_no_fp8(architectures: list[str], capability: tuple[int, int]) -> str | None:
    """Why a GPU of that compute capability cannot multiply float8 with kernels for these architectures (see
    covers()); None if it can."""
    if capability < FP8_CAPABILITY:
        needs, has = (".".join(map(str, version)) for version in (FP8_CAPABILITY, capability))
        return f"float8 needs compute capability {needs}, this GPU has {has}"
    with_fp8 = [a for a in architectures if divmod(int(re.match(r"\d+", a)[0]), 10) >= FP8_CAPABILITY]
    if covers(with_fp8, capability):
        return None
    major, minor = capability
    return (
        f"what this build has for compute capability {major}.{minor} is for an older one, without float8; "
        f"build with CMAKE_ARGS=-DEDLM_CUDA_ARCHITECTURES={major}{minor}-real"
    )


def free_memory(device: torch.device) -> int:
    """Bytes on the GPU that torch can still take."""
    torch.cuda.empty_cache()  # what an engine before this one left to torch is free as well
    return torch.cuda.mem_get_info(device)[0]
