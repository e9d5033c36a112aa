"""OpenMP under torch: how its threads wait, and how many a thread of ours has."""

import ctypes
import importlib.util
import os
import sys
from pathlib import Path

_POLICY = "OMP_WAIT_POLICY"


def load_passive() -> None:
    """Load torch's GNU OpenMP so that its threads sleep where they wait, before torch does.

    Its default barrier spins; beside another busy process on the same cores that makes a forward about 15
    times slower. The library reads the policy once, when it is loaded, so the environment is as before
    afterwards. Without effect where torch is loaded already, where the user chose a policy, or where
    torch uses another OpenMP.
    """
    if "torch" in sys.modules or _POLICY in os.environ:
        return
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return
    os.environ[_POLICY] = "PASSIVE"
    try:
        for path in (Path(spec.origin).parent / "lib").glob("libgomp*.so*"):
            ctypes.CDLL(str(path))
    except OSError:  # torch will say what is wrong with it
        pass
    finally:
        del os.environ[_POLICY]


def set_threads(count: int):
    """Let parallel torch ops of the calling thread, and of no other, use so many threads.

    torch.set_num_threads would also set what threads that the program starts later begin with.
    """
    import torch

    torch.get_num_threads()  # a thread's first call sets the default
    setter = getattr(ctypes.CDLL(None), "omp_set_num_threads", None)
    if setter is not None:
        setter(ctypes.c_int(count))
    if torch.get_num_threads() != count:  # another thread pool than OpenMP's
        torch.set_num_threads(count)
