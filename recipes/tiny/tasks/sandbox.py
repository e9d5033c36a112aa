"""Run generated Python in a subprocess with limits on time and memory, without imports or files."""

from __future__ import annotations

import json
import subprocess
import sys

CPU_SECONDS = 2
MEMORY_BYTES = 512 << 20
BUILTINS = (
    "abs all any bool dict enumerate float int len list max min range reversed round sorted str sum tuple zip"
)

# The child sets its own limits before it reads the code, so nothing generated runs outside them.
CHILD = f"""
import builtins, json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({CPU_SECONDS}, {CPU_SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))
allowed = {{name: getattr(builtins, name) for name in "{BUILTINS}".split()}}
results = []
for code, name, inputs in json.load(sys.stdin):
    try:
        scope = {{"__builtins__": allowed}}
        exec(code, scope)
        results.append([scope[name](value) for value in inputs])
    except Exception:
        results.append(None)
print(json.dumps(results))
"""


def run_function(code: str, name: str, checks: tuple) -> bool:
    """True when the function `name` of `code` returns the expected value for every (argument, value)."""
    job = json.dumps([[code, name, [argument for argument, _ in checks]]])
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-c", CHILD],
            input=job,
            capture_output=True,
            text=True,
            timeout=5 * CPU_SECONDS,
            env={},
        )
        (values,) = json.loads(child.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return False
    return values == [value for _, value in checks]
