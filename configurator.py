"""Settings as in nanoGPT: defaults at the top of a script, then a config file, then --key=value.

    python finetune.py config/finetune_sst.py --batch_size=32

Every lower-case name that a script gives a literal value at its top level is a setting, and the comment on that line is
its help. A config file holds only `name = literal` lines: it is parsed, never executed.
"""

import ast
import difflib
import io
import math
import os
import shutil
import sys
import textwrap
import tokenize
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from errors import UserError

Rule = tuple[Callable[[Any], bool], str]  # what must hold of a value, and the same in words


def load_settings(script: str, argv: list[str], rules: dict[str, Rule]) -> SimpleNamespace:
    """Return the script's settings after config files and --key=value arguments, in the order given.

    Args:
        script: path of the script whose top level holds the defaults.
        argv: the arguments after the script's name; `--help` prints every setting and exits.
        rules: for some settings, a condition on the value and its description ("above 0").

    Raises:
        UserError: an unreadable config file, an unknown name, a wrong type or a value against its rule.
    """
    with open(script, encoding="utf-8") as f:
        source = f.read()
    defaults = {name: value for name, value, _ in _assignments(source, script, only_settings=True)}
    if "--help" in argv or "-h" in argv:
        print(_help(source, script, defaults))
        sys.exit(0)
    settings = dict(defaults)
    for argument in argv:
        for name, value, where in _read_argument(argument, defaults):
            settings[name] = _checked(name, value, where, defaults, rules)
    return SimpleNamespace(**settings)


def differences(before: dict[str, Any], now: dict[str, Any], free: set[str]) -> str:
    """Return in words which settings differ, but for the free ones; nothing where none does."""
    changed = [name for name in now if name not in free and now[name] != before.get(name)]
    return "; ".join(f"{name} was {_short(before.get(name))} and is now {_short(now[name])}" for name in changed)


def _read_argument(argument: str, defaults: dict[str, Any]) -> list[tuple[str, Any, str]]:
    """Return (name, value, where) for each setting that one command line argument makes."""
    if not argument.startswith("-"):
        return _read_config_file(argument)
    name, equals, text = argument.removeprefix("--").partition("=")
    if not argument.startswith("--") or not equals:
        raise UserError(f"argument {argument!r}: write settings as --key=value (--help lists them)")
    if isinstance(defaults.get(name), str):
        return [(name, text, "--" + name)]
    try:
        return [(name, ast.literal_eval(text), "--" + name)]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return [(name, text, "--" + name)]


def _read_config_file(path: str) -> list[tuple[str, Any, str]]:
    try:
        if not os.path.isfile(path):
            raise UserError(
                f"config file {path!r} {'is no regular file' if os.path.exists(path) else 'does not exist'}"
            )
        with open(path, encoding="utf-8-sig") as f:
            source = f.read()
    except (OSError, ValueError) as error:  # not UTF-8, or a name with a NUL byte
        raise UserError(f"config file {path} cannot be read: {error}") from None
    return _assignments(source, path, only_settings=False)


def _assignments(source: str, path: str, only_settings: bool) -> list[tuple[str, Any, str]]:
    """Return (name, value, "path:line") for every `name = literal` at the top level of Python source.

    With only_settings all else is passed over (a script), otherwise all else but docstrings is refused (a config).
    """
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno or 1}: not Python syntax: {error.msg}") from None
    except (ValueError, MemoryError, RecursionError) as error:  # NUL bytes, absurd nesting
        raise UserError(f"{path}: not Python syntax: {error}") from None
    found = []
    for node in body:
        where = f"{path}:{node.lineno}"
        try:
            if not isinstance(node, ast.Assign) or len(node.targets) != 1:
                raise ValueError
            value = ast.literal_eval(node.value)
            name = node.targets[0].id
        except (ValueError, TypeError, AttributeError, MemoryError, RecursionError):
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if only_settings or is_docstring:
                continue
            raise UserError(f"{where}: a config file holds only `name = literal` lines") from None
        if not only_settings or name.islower():
            found.append((name, value, where))
    return found


def _checked(name: str, value: Any, where: str, defaults: dict[str, Any], rules: dict[str, Rule]) -> Any:
    """Return value in its setting's type, or raise a UserError that says where it was set and what is expected."""
    if name not in defaults:
        nearest = difflib.get_close_matches(name, defaults, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "--help lists them all"
        raise UserError(f"{where}: unknown setting {name!r}; {hint}")
    expected = type(defaults[name])
    if expected is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not expected:
        raise UserError(
            f"{where}: {name} must be of type {expected.__name__}, not {type(value).__name__} {_short(value)}"
        )
    try:
        "".join(part for part in (value if expected is list else [value]) if isinstance(part, str)).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: {name} holds what is no character (bytes that are not UTF-8): {value!r:.60}"
        ) from None
    holds, words = rules.get(name, (lambda _: True, ""))
    if expected is int and abs(value) >= 2**53:
        holds, words = (lambda _: False), "below 2**53"
    if expected is float and not math.isfinite(value):
        holds, words = (lambda _: False), "a finite number"
    if not holds(value):
        raise UserError(f"{where}: {name} must be {words}, not {_short(value)}")
    return value


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of over 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _help(source: str, script: str, defaults: dict[str, Any]) -> str:
    """Return the script's docstring and one line a setting: its default and the comment beside it."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    columns = max(60, min(shutil.get_terminal_size().columns, 120))
    lines = [ast.get_docstring(ast.parse(source)) or "", "", "settings, with their defaults:"]
    for name, value, where in _assignments(source, script, only_settings=True):
        setting = f"--{name}={value}"
        meaning = comments.get(int(where.rpartition(":")[2]), "")
        lines.append(textwrap.fill(f"  {setting:<32} {meaning}".rstrip(), columns, subsequent_indent=" " * 35))
    return os.linesep.join(lines)
