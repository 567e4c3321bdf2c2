"""Settings as in nanoGPT: defaults at the top of a script, then a config file, then --key=value.

    python finetune.py config/finetune_sst.py --batch_size=32

Every lower-case name that a script gives a literal value at its top level is a setting, and the comment on that line is
its help. RULES below has what must hold of it. A config file holds only `name = literal` lines: it is parsed, never
executed.
"""

import ast
import difflib
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from classifier.errors import UserError

Rule = tuple[Callable[[Any], bool], str]  # what must hold of a value, and the same in words


def _one_of(*names: str) -> Rule:
    return (lambda value: value in names), "one of " + ", ".join(names)


POSITIVE = (lambda value: value > 0, "above 0")
NOT_NEGATIVE = (lambda value: value >= 0, "0 or more")
FRACTION = (lambda value: 0 <= value < 1, "at least 0 and below 1")
# not the bytes of another encoding, which Python makes lone surrogates of
TEXT = (lambda value: value.encode(errors="ignore").decode() == value, "text in UTF-8")
NAME = (lambda value: value != "" and value.isprintable(), "a name")
WORDS = (lambda value: all(type(word) is str and word and word.isprintable() for word in value), "a list of words")
SEEDS = (
    lambda value: all(type(seed) is int and seed >= 0 for seed in value) and len(set(value)) == len(value),
    "a list of different whole numbers, 0 or more",
)
RULES: dict[str, Rule] = {  # any other number must be 0 or more
    **dict.fromkeys(("block_size", "n_layer", "n_head", "n_embd", "epochs", "batch_size"), POSITIVE),
    **dict.fromkeys(("gradient_accumulation_steps", "learning_rate"), POSITIVE),
    **dict.fromkeys(("dropout", "beta1", "beta2", "reference_accuracy"), FRACTION),
    **dict.fromkeys(("data_dir", "out_dir", "init_from", "wandb_project"), NAME),
    "trainable_blocks": (lambda value: value >= -1, "-1 or more"),
    "label_words": WORDS,
    "seeds": SEEDS,
    "lr_schedule": _one_of("constant", "cosine"),
    "device": _one_of("auto", "cuda", "mps", "cpu"),
    "dtype": _one_of("auto", "float32", "bfloat16", "float16"),
    "class_weights": _one_of("none", "balanced"),
    "best_by": _one_of("accuracy", "macro_f1"),
}
# on resume, epochs only where the learning rate's schedule does not hang on them; anything else would be another run
MAY_CHANGE = {"data_dir", "out_dir", "overwrite", "init_from", "new_head", "epochs", "max_steps", "seeds", "device"}
MAY_CHANGE |= {"token_budget", "activation_checkpointing", "save_interval", "patience", "reference_accuracy"}
MAY_CHANGE |= {"tensorboard_log", "wandb_log", "wandb_project", "wandb_run_name"}
ARE_LOCAL = {"data_dir", "out_dir", "init_from", "token_budget", "device"}  # of one machine, not of the whole run
# since checkpoints were first written, and what held before
ADDED = {"eval_interval": 0, "new_head": False, "token_budget": 0}
ADDED |= {"class_weights": "none", "best_by": "accuracy", "patience": 0}
NO_LITERAL = (ValueError, TypeError, SyntaxError)  # what ast.literal_eval raises


def read_settings(script: str, argv: list[str] | None = None) -> SimpleNamespace:
    """Return the script's settings after config files and --key=value arguments, in the order given.

    Args:
        script: path of the script whose top level holds the defaults.
        argv: the arguments after the script's name, the process's own unless given; `--help` prints every setting and
            exits.

    Raises:
        UserError: an unreadable config file, an unknown name, a wrong type or a value against its rule; or overwrite
            would take away what the run is to start from.
    """
    argv = sys.argv[1:] if argv is None else argv
    settings = {name: value for name, value, _ in _assignments(script, is_script=True)}
    if "--help" in argv or "-h" in argv:
        print(_help(script))
        sys.exit(0)
    for argument in argv:
        option, equals, text = argument.partition("=")
        name = option.removeprefix("--")
        if option.startswith("--") and equals:
            given = [(name, text if isinstance(settings.get(name), str) else _literal(text), option)]
        elif os.path.isfile(argument):
            given = _assignments(argument, is_script=False)
        else:
            raise UserError(f"there is no config file {argument!r}, and a setting is --key=value (--help lists them)")
        for name, value, origin in given:
            settings[name] = _checked(name, value, origin, settings)
    found = SimpleNamespace(**settings)
    start = Path(settings.get("init_from", "")).resolve()
    if settings.get("overwrite") and start.suffix == ".pt" and Path(found.out_dir).resolve() in start.parents:
        raise UserError(f"--overwrite=True would remove {start}, where training is to start: name another out_dir")
    return found


def differences(before: dict[str, Any], now: dict[str, Any], free: set[str]) -> str:
    """Return in words which settings differ, but for the free ones; nothing where none does."""
    before = ADDED | before
    changed = [name for name in now if name not in free and now[name] != before.get(name)]
    return "; ".join(f"{name} was {before.get(name)!r:.60} and is now {now[name]!r:.60}" for name in changed)


def _literal(text: str) -> Any:
    """Return what text says in Python, or the text itself, which _checked() may refuse."""
    try:
        return ast.literal_eval(text)
    except NO_LITERAL:
        return text


def _assignments(path: str, is_script: bool) -> list[tuple[str, Any, str]]:
    """Return (name, value, "path:line") for every `name = literal` at the top level of a Python file.

    All else is passed over in a script, and refused in a config, but for docstrings.
    """
    try:
        body = ast.parse(Path(path).read_text(encoding="utf-8-sig")).body
    except NO_LITERAL as error:  # not UTF-8, not Python's syntax, or NUL bytes
        raise UserError(f"{path}:{getattr(error, 'lineno', None) or 1}: not Python syntax: {error}") from None
    found = []
    for node in body:
        try:
            (target,) = node.targets
            name, value = target.id, ast.literal_eval(node.value)
        except (AttributeError, *NO_LITERAL):
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if is_script or is_docstring:
                continue
            raise UserError(f"{path}:{node.lineno}: a config file holds only `name = literal` lines") from None
        if not is_script or name.islower():
            found.append((name, value, f"{path}:{node.lineno}"))
    return found


def _checked(name: str, value: Any, origin: str, settings: dict[str, Any]) -> Any:
    """Return value in its setting's type, or raise a UserError that says where it was set and what is expected."""
    if name not in settings:
        nearest = difflib.get_close_matches(name, settings, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "--help lists them all"
        raise UserError(f"{origin}: unknown setting {name!r}; {hint}")
    expected = type(settings[name])
    if expected is list and not isinstance(value, list):  # as --seeds=1,2 or --seeds=1
        value = list(value) if isinstance(value, tuple) else [value]
    kind = type(value)
    limit, words = (2**53, "below 2**53") if kind is int else (math.inf, "a finite number")
    if kind in (int, float) and not abs(value) < limit:  # nor is NaN
        raise UserError(f"{origin}: {name} must be {words}, not {value!r:.60}")
    if expected is float and kind is int:
        value = float(value)
    elif kind is not expected:
        raise UserError(f"{origin}: {name} must be of type {expected.__name__}, not {kind.__name__} {value!r:.60}")
    rule = RULES.get(name) or {int: NOT_NEGATIVE, float: NOT_NEGATIVE, str: TEXT}.get(expected)
    if rule and not rule[0](value):
        raise UserError(f"{origin}: {name} must be {rule[1]}, not {value!r:.60}")
    return value


def _help(script: str) -> str:
    """Return the script's docstring and one line a setting: its default and the comment beside it."""
    source = Path(script).read_text(encoding="utf-8")
    columns = shutil.get_terminal_size().columns
    shown = [ast.get_docstring(ast.parse(source)) or "", "", "settings, with their defaults:"]
    for name, value, origin in _assignments(script, is_script=True):
        meaning = source.splitlines()[int(origin.rpartition(":")[2]) - 1].partition("  # ")[2]
        line = f"  {f'--{name}={value}':<32} {meaning}"
        shown.append(textwrap.fill(line, columns, subsequent_indent=" " * 35, break_on_hyphens=False))
    return "\n".join(shown)
