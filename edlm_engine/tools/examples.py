"""The problems that a checkpoint brings along, in its examples.json."""

from collections.abc import Iterable
from pathlib import Path

from ..checkpoints.folder import read_json
from ..errors import CheckpointError, shown

EXAMPLES = "examples.json"


def read_examples(folder: Path, keys: Iterable[str] = ("task", "prompt", "text")) -> list[dict[str, str]]:
    """Objects with at least these keys: the kind of problem, the prompt, and the right answer.

    Raises CheckpointError that names the file, the index and the key.
    """
    path = folder / EXAMPLES
    if not path.exists():
        raise CheckpointError(f"{folder}: has no {EXAMPLES}")
    examples = read_json(path, list)
    if not examples:
        raise CheckpointError(f"{path}: holds no example")
    for index, example in enumerate(examples):
        if not isinstance(example, dict):
            raise CheckpointError(f"{path}: [{index}] must be an object, is {shown(example)}")
        for key in keys:
            if not isinstance(value := example.get(key), str) or not value:
                raise CheckpointError(f"{path}: [{index}][{key!r}] must be a text, is {shown(value)}")
    return examples
