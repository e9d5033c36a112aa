"""Writing of result files."""

from __future__ import annotations

import json
from pathlib import Path

from edlm_engine.files import replace_file


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1) + "\n"))
