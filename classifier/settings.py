"""Settings as in nanoGPT: defaults at the top of a script, then a config file, then --key=value.

    python finetune.py config/finetune_sst.py --batch_size=32

Every lower-case name that a script gives a literal value at its top level is a setting, and the comment on that line is
its help. SETTINGS below has their rules. A config file holds only `name = literal` lines: it is parsed, never executed.
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
from typing import Any, NamedTuple

from classifier import errors
from classifier.errors import UserError

Rule = tuple[Callable[[Any], bool], str]  # what must hold of a value, and the same in words


class Setting(NamedTuple):
    """What is said of a setting beside its default and its meaning, which stand in finetune.py."""

    rule: Rule | None = None
    may_change: bool = False  # on resume; anything else would make it another run
    is_local: bool = False  # of one machine: may differ between the processes of a run


POSITIVE = (lambda value: value > 0, "above 0")
NOT_NEGATIVE = (lambda value: value >= 0, "0 or more")
FRACTION = (lambda value: 0 <= value < 1, "at least 0 and below 1")
NAME = (lambda value: value != "" and value.isprintable(), "a name")
WORDS = (lambda value: all(type(word) is str and word for word in value), "a list of words")


def _one_of(*names: str) -> Rule:
    return (lambda value: value in names), "one of " + ", ".join(names)


def _are_seeds(value: list[Any]) -> bool:
    return all(type(seed) is int and 0 <= seed < 2**53 for seed in value) and len(set(value)) == len(value)


SETTINGS = {
    "data_dir": Setting(NAME, may_change=True, is_local=True),
    "out_dir": Setting(NAME, may_change=True, is_local=True),
    "overwrite": Setting(may_change=True),
    "init_from": Setting(NAME, may_change=True, is_local=True),
    "new_head": Setting(may_change=True),
    "block_size": Setting(POSITIVE),
    "prompt": Setting(),
    "label_words": Setting(WORDS),
    "trainable_blocks": Setting((lambda value: value >= -1, "-1 or more")),
    "dropout": Setting(FRACTION),
    "n_layer": Setting(POSITIVE),
    "n_head": Setting(POSITIVE),
    "n_embd": Setting(POSITIVE),
    "epochs": Setting(POSITIVE, may_change=True),  # but where the learning rate's schedule hangs on them
    "max_steps": Setting(NOT_NEGATIVE, may_change=True),
    "batch_size": Setting(POSITIVE),
    "gradient_accumulation_steps": Setting(POSITIVE),
    "token_budget": Setting(NOT_NEGATIVE, may_change=True, is_local=True),
    "learning_rate": Setting(POSITIVE),
    "lr_schedule": Setting(_one_of("constant", "cosine")),
    "warmup_steps": Setting(NOT_NEGATIVE),
    "min_lr": Setting(NOT_NEGATIVE),
    "beta1": Setting(FRACTION),
    "beta2": Setting(FRACTION),
    "weight_decay": Setting(NOT_NEGATIVE),
    "grad_clip": Setting(NOT_NEGATIVE),
    "eval_interval": Setting(NOT_NEGATIVE),
    "save_interval": Setting(NOT_NEGATIVE, may_change=True),
    "reference_accuracy": Setting(FRACTION, may_change=True),
    "tensorboard_log": Setting(may_change=True),
    "wandb_log": Setting(may_change=True),
    "wandb_project": Setting(NAME, may_change=True),
    "wandb_run_name": Setting(may_change=True),
    "seed": Setting(NOT_NEGATIVE),
    "seeds": Setting((_are_seeds, "a list of different whole numbers, 0 or more"), may_change=True),
    "deterministic": Setting(),
    "device": Setting(_one_of("auto", "cuda", "mps", "cpu"), may_change=True, is_local=True),
    "dtype": Setting(_one_of("auto", "float32", "bfloat16", "float16")),
    "compile": Setting(),
    "activation_checkpointing": Setting(may_change=True),
}
MAY_CHANGE = {name for name, setting in SETTINGS.items() if setting.may_change}
ADDED = {
    "eval_interval": 0,
    "new_head": False,
    "token_budget": 0,
}  # since checkpoints were first written, and what held before
ARE_LOCAL = {name for name, setting in SETTINGS.items() if setting.is_local}


def load_settings(script: str) -> SimpleNamespace:
    """Return a script's settings with the command line's config files and --key=value arguments.

    What is wrong with them ends the process with one line.
    """
    settings = errors.run(lambda: read_settings(script, sys.argv[1:]))
    errors.run(lambda: _refuse_losing_the_start(settings))
    return settings


def read_settings(script: str, argv: list[str], table: dict[str, Setting] = SETTINGS) -> SimpleNamespace:
    """Return the script's settings after config files and --key=value arguments, in the order given.

    Args:
        script: path of the script whose top level holds the defaults.
        argv: the arguments after the script's name; `--help` prints every setting and exits.
        table: the rules that values must keep.

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
        for name, value, origin in _read_argument(argument, defaults):
            settings[name] = _checked(name, value, origin, defaults, table)
    return SimpleNamespace(**settings)


def _refuse_losing_the_start(settings: SimpleNamespace) -> None:
    """Raise a UserError where the run would remove the checkpoint that it is to start from."""
    start = os.path.realpath(settings.init_from)
    is_inside = start.startswith(os.path.realpath(settings.out_dir) + os.sep)
    if settings.overwrite and settings.init_from.endswith(".pt") and is_inside:
        raise UserError(
            f"--overwrite=True would remove {settings.init_from}, which training is to start from: name another out_dir"
        )


def differences(before: dict[str, Any], now: dict[str, Any], free: set[str]) -> str:
    """Return in words which settings differ, but for the free ones; nothing where none does."""
    before = ADDED | before
    changed = [name for name in now if name not in free and now[name] != before.get(name)]
    return "; ".join(f"{name} was {_short(before.get(name))} and is now {_short(now[name])}" for name in changed)


def _read_argument(argument: str, defaults: dict[str, Any]) -> list[tuple[str, Any, str]]:
    """Return (name, value, origin) for each setting that one command line argument makes."""
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
        origin = f"{path}:{node.lineno}"
        try:
            if not isinstance(node, ast.Assign) or len(node.targets) != 1:
                raise ValueError
            value = ast.literal_eval(node.value)
            name = node.targets[0].id
        except (ValueError, TypeError, AttributeError, MemoryError, RecursionError):
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if only_settings or is_docstring:
                continue
            raise UserError(f"{origin}: a config file holds only `name = literal` lines") from None
        if not only_settings or name.islower():
            found.append((name, value, origin))
    return found


def _checked(name: str, value: Any, origin: str, defaults: dict[str, Any], table: dict[str, Setting]) -> Any:
    """Return value in its setting's type, or raise a UserError that says where it was set and what is expected."""
    if name not in defaults:
        nearest = difflib.get_close_matches(name, defaults, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "--help lists them all"
        raise UserError(f"{origin}: unknown setting {name!r}; {hint}")
    expected = type(defaults[name])
    if expected is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not expected:
        raise UserError(
            f"{origin}: {name} must be of type {expected.__name__}, not {type(value).__name__} {_short(value)}"
        )
    try:
        "".join(part for part in (value if expected is list else [value]) if isinstance(part, str)).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{origin}: {name} holds what is no character (bytes that are not UTF-8): {value!r:.60}"
        ) from None
    holds, words = (name in table and table[name].rule) or (lambda _: True, "")
    if expected is int and abs(value) >= 2**53:
        holds, words = (lambda _: False), "below 2**53"
    if expected is float and not math.isfinite(value):
        holds, words = (lambda _: False), "a finite number"
    if not holds(value):
        raise UserError(f"{origin}: {name} must be {words}, not {_short(value)}")
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
    for name, value, origin in _assignments(source, script, only_settings=True):
        setting = f"--{name}={value}"
        meaning = comments.get(int(origin.rpartition(":")[2]), "")
        lines.append(textwrap.fill(f"  {setting:<32} {meaning}".rstrip(), columns, subsequent_indent=" " * 35))
    return os.linesep.join(lines)
