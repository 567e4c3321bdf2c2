"""Whether stored content, which anyone may have changed or cut short, has the shape that the program relies on."""

import json
import math
from pathlib import Path
from typing import Any

from classifier.errors import UserError


def read_json(path: Path, schema: Any) -> Any:
    """Return a JSON file's content.

    Raises:
        UserError: there is no such file, or it does not hold what the schema says.
    """
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"there is no file {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path} cannot be read as JSON: truncated, damaged or of another program") from None
    if (wrong := misfit(content, schema)) is not None:
        raise UserError(f"{path} is damaged or of another program: {wrong or 'it is no object'}")
    return content


def misfit(content: Any, schema: Any, path: str = "") -> str | None:
    """Return the name of the first part of some content that does not fit its schema, as "progress.best", or None.

    Args:
        content: what json or torch.load has read.
        schema: a type (a bool is no int), a function of the value that says whether it fits, or a dict of the keys that
            must be there, each with its schema.
        path: the name of the content itself.
    """
    if isinstance(schema, dict):
        if not isinstance(content, dict):
            return path
        parts = ((key, f"{path}.{key}" if path else key) for key in schema)
        wrong = (misfit(content[key], schema[key], name) if key in content else name for key, name in parts)
        return next((name for name in wrong if name is not None), None)
    if isinstance(schema, type):
        fits = isinstance(content, schema) and (schema is bool or not isinstance(content, bool))
    else:
        fits = schema(content)
    return None if fits else path


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number, 0 or more, that an int64 can hold."""
    return type(value) is int and 0 <= value < 2**53


def is_positive(value: Any) -> bool:
    """Return whether a value is a count above 0."""
    return is_count(value) and value > 0


def is_finite(value: Any) -> bool:
    """Return whether a value is a number of type float, and neither infinite nor NaN."""
    return type(value) is float and math.isfinite(value)


def are_names(value: Any) -> bool:
    """Return whether a value is a list of names that can be printed."""
    return isinstance(value, list) and all(isinstance(name, str) and name.isprintable() for name in value)


def is_plain(value: Any, depth: int = 8) -> bool:
    """Return whether a value can be written as JSON and read back: numbers, text, None, and lists and dicts of them."""
    if isinstance(value, dict):
        return depth > 0 and all(type(key) is str and is_plain(part, depth - 1) for key, part in value.items())
    if isinstance(value, list | tuple):
        return depth > 0 and all(is_plain(part, depth - 1) for part in value)
    if type(value) is int:
        return abs(value) < 2**63
    if type(value) is str:
        return not any("\ud800" <= character <= "\udfff" for character in value)  # UTF-8 has no lone surrogates
    return value is None or type(value) in (bool, float)


EVALUATION = {  # the schema of a run's best, wherever it is stored
    "step": is_count,
    "epoch": is_finite,
    "accuracy": lambda value: type(value) is float and 0 <= value <= 1,
    "loss": lambda value: type(value) is float and value >= 0,  # infinite in a run that diverged
}
