"""Whether stored content, which anyone may have changed or cut short, has the shape that the program relies on."""

from typing import Any


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


def are_names(value: Any) -> bool:
    """Return whether a value is a list of names that can be printed."""
    return isinstance(value, list) and all(isinstance(name, str) and name.isprintable() for name in value)
