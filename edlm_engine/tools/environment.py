"""Variables of the environment that change what the engine does."""

import os

from ..printing import one_line

VARIABLES = {
    "EDLM_ISA": "CPU kernels to use instead of the best ones: a name that edlm info lists as compiled",
    "OMP_NUM_THREADS": "torch's number of threads, beyond which num_threads=None does not go",
    "MKL_NUM_THREADS": "the same, of torch builds with MKL, where OMP_NUM_THREADS is not set",
    "OMP_WAIT_POLICY": "whether OpenMP's waiting threads sleep (PASSIVE, our default) or spin",
    "CUDA_VISIBLE_DEVICES": "the GPUs that torch sees",
    "HF_HOME": "folder of the hub's cache and login, by default ~/.cache/huggingface",
    "HF_HUB_CACHE": "folder of the hub's cache alone",
    "HF_TOKEN": "login at the hub",
    "HF_HUB_OFFLINE": "1: take models from the hub's cache only",
    "HF_ENDPOINT": "address of the hub",
    "NO_COLOR": "no colours on the terminal",
}
_SECRET = ("HF_TOKEN",)


def set_variables() -> list[str]:
    """Those that are set, as NAME=value; what is secret is not shown."""
    return [
        f"{name} is set" if name in _SECRET else f"{name}={one_line(os.environ[name], 100)}"
        for name in VARIABLES
        if name in os.environ
    ]
