"""A process that opens folders for test_fuzz_folder.py: a path per line comes in, what became of it goes out.

It may use so much memory and no more, and its death is seen by who started it."""

import json
import os
import resource
import sys

PROMPT = [5, 6, 7]


class Request(Exception):
    """A folder that loaded; what it cannot do is an error of the request, which need not name a file."""


def use(folder: str) -> str:
    """What a user does with a checkpoint."""
    from edlm_engine import Engine, NumericalError

    with Engine(folder, dtype="float32", num_threads=1, kv_cache_tokens=256, max_batch_size=2) as engine:
        try:
            engine.generate(PROMPT, max_new_tokens=1)
            if engine.tokenizer is not None:
                engine.generate("w5 w6 w7", max_new_tokens=2)
                engine.chat([{"role": "user", "content": "w5"}], max_new_tokens=2)
        except NumericalError:  # bits that flipped in the weights
            pass
        except BaseException as error:
            raise Request from error
    return "loaded"


def settings(path: str) -> str:
    from edlm_engine.settings import load_settings

    load_settings(path)
    return "loaded"


def attempt(kind: str, path: str) -> dict:
    try:
        return {"outcome": {"folder": use, "settings": settings}[kind](path)}
    except BaseException as error:
        cause = error.__cause__ if isinstance(error, Request) else error
        clean = isinstance(cause, ValueError) and not isinstance(cause, UnicodeError)
        return {
            "error": type(cause).__name__,
            "clean": clean,
            "request": cause is not error,
            "message": str(cause),
        }


def main(most_bytes: int):
    import torch

    import edlm_engine.engine  # noqa: F401 what is imported counts as there

    torch.set_num_threads(1)
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115
    limit = pages * resource.getpagesize() + most_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", file=reports, flush=True)
    for line in sys.stdin:
        print(json.dumps(attempt(*json.loads(line))), file=reports, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
