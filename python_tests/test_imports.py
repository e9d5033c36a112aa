"""Imports inside the package go one way: from what a user sees down to the ops."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "edlm_engine"

# Rooms of the house, lowest first. A room imports itself and those before it; rooms of one line do not
# know each other.
LEVELS = [
    ["__init__", "errors", "files", "packing", "printing", "rope"],
    ["config", "progress"],
    ["ops", "hardware"],
    ["steps"],
    ["params", "policies", "models"],
    ["outputs", "settings", "arguments", "checkpoints"],
    ["core"],
    ["device_led"],
    ["options"],
    ["assembly"],
    ["intake", "streams"],
    ["engine"],
    ["benchmark", "convert"],
    ["tools", "pytest_plugin"],
    ["__main__"],
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module: tuple[str, ...]) -> str:
    return module[0] if module else "__init__"


def imported(path: Path) -> set[str]:
    """The rooms that a file of the package imports, wherever in it."""
    own = path.relative_to(PACKAGE).with_suffix("").parts
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = own[: len(own) - node.level]
            target = (*base, *(node.module or "").split(".")) if node.module else base
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "edlm_engine":
            target = tuple(node.module.split(".")[1:])
        else:
            continue
        names = [alias.name for alias in node.names]
        rooms |= {room(target)} if target else {name if name in LEVEL else "__init__" for name in names}
    return rooms


def test_every_room_has_its_level():
    assert {room(path.relative_to(PACKAGE).with_suffix("").parts) for path in MODULES} <= LEVEL.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = room(path.relative_to(PACKAGE).with_suffix("").parts)
    if own == "__init__":
        return  # the face of the package fetches its names from above when they are asked for
    upwards = {r for r in imported(path) if r != own and (LEVEL[r] >= LEVEL[own]) and r != "__init__"}
    public = {"Engine", "SamplingParams"}  # by the package's own name, as a user would
    assert not upwards - public, f"{own} must not import {', '.join(sorted(upwards))}"
