"""The house's floors: a module imports from its own room and those before it, and a room has at most eight modules."""

import ast

from conftest import REPO

ROOMS = ["", "data", "training", "answers"]  # the first is the ground


def modules(room: str) -> list[str]:
    return sorted(path.stem for path in (REPO / "classifier" / room).glob("*.py") if path.stem != "__init__")


def imported_rooms(path) -> set[str]:
    """The rooms that a module imports from, anywhere in it."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        parts = [name.split(".") for name in names if name.startswith("classifier.")]
        rooms |= {part[1] if part[1] in ROOMS else "" for part in parts}
    return rooms


def test_a_module_imports_from_its_own_room_and_those_before_it():
    for number, room in enumerate(ROOMS):
        assert 3 < len(modules(room)) <= 8, room
        for name in modules(room):
            found = imported_rooms(REPO / "classifier" / room / f"{name}.py")
            assert found <= set(ROOMS[: number + 1]), (room, name)
    assert imported_rooms(REPO / "model.py") == {""}
