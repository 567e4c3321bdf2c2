"""The package: a module imports from its own subpackage and those above it; a subpackage has up to twelve modules."""

import ast

from conftest import REPO

SUBPACKAGES = ["", "data", "training", "answers"]  # the first is classifier/ itself


def imported_subpackages(path) -> set[str]:
    """The subpackages that a module imports from, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        parts = [name.split(".") for name in names if name.startswith("classifier.")]
        found |= {part[1] if part[1] in SUBPACKAGES else "" for part in parts}
    return found


def test_a_module_imports_from_its_own_subpackage_and_those_above_it():
    for number, subpackage in enumerate(SUBPACKAGES):
        paths = [path for path in (REPO / "classifier" / subpackage).glob("*.py") if path.stem != "__init__"]
        assert 3 < len(paths) <= 12, subpackage
        for path in paths:
            assert imported_subpackages(path) <= set(SUBPACKAGES[: number + 1]), path
    assert imported_subpackages(REPO / "model.py") == {""}
