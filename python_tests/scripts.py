"""Scripts that lie beside each other and import each other by bare names, of which other folders have the
same."""

import sys
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scripts_of(folder: Path):
    """Within the block `import x` finds the folder's x.py; afterwards all is as it was."""
    names = {path.stem for path in folder.glob("*.py")}
    others = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in names & sys.modules.keys():
            del sys.modules[name]
        sys.modules.update(others)
