"""Settings as in nanoGPT: defaults at the top of a script, then a config file, then --key=value.

    python finetune.py config/finetune_sst.py --batch_size=32

Every lower-case name that a script sets to a literal at its top level is a setting, and the comment on that line is its
help. A config file may contain only `name = literal` lines: it is parsed, never executed.
"""

import ast
import difflib
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

from classifier.errors import UserError, did_you_mean

# what a number must be, if not 0 or more, and what a text may be
POSITIVE = {"block_size", "n_layer", "n_head", "n_embd", "epochs", "batch_size", "gradient_accumulation_steps"}
POSITIVE |= {"learning_rate"}
BELOW_ONE = {"dropout", "beta1", "beta2", "reference_accuracy"}
NAMES = {"data_dir", "out_dir", "init_from", "wandb_project"}
CHOICES = {
    "lr_schedule": ("constant", "cosine"),
    "device": ("auto", "cuda", "mps", "cpu"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "class_weights": ("none", "balanced"),
    "best_by": ("accuracy", "macro_f1"),
    "keep": ("last", "first"),
}
# what a resumed run may change; epochs only if the learning rate does not depend on them
MAY_CHANGE = {"data_dir", "out_dir", "overwrite", "init_from", "new_head", "epochs", "max_steps", "device"}
MAY_CHANGE |= {"token_budget", "activation_checkpointing", "save_interval", "patience", "reference_accuracy"}
MAY_CHANGE |= {"tensorboard_log", "wandb_log", "wandb_project", "wandb_run_name"}
ARE_LOCAL = {"data_dir", "out_dir", "init_from", "token_budget", "device"}  # may differ between a run's processes
NO_LITERAL = (ValueError, TypeError, SyntaxError)  # raised by ast.literal_eval


def read_settings(script: str, argv: list[str] | None = None) -> Any:
    """Read a script's settings: its defaults, then config files and --key=value arguments in the order given.

    Args:
        script: path of the script whose top level has the defaults.
        argv: the arguments after the script's name; by default the process's own, if it runs that script (a
            notebook's kernel has others). `--help` prints every setting.

    Returns:
        A frozen object with an attribute for each setting; vars() makes a dict of it.

    Raises:
        UserError: an unreadable config file, an unknown name or an invalid value.
    """
    if argv is None:
        argv = sys.argv[1:] if Path(sys.argv[0]).resolve() == Path(script).resolve() else []
    settings = {name: value for name, value, _ in _assignments(script, is_script=True)}
    if "--help" in argv or "-h" in argv:
        print(_help(script))
        sys.exit(0)
    for argument in argv:
        option, equals, text = argument.partition("=")
        name = option.removeprefix("--")
        if option.startswith("--") and equals:
            given = [(name, _parsed(text, settings.get(name)), option)]
        elif os.path.isfile(argument) and argument.endswith(".py"):
            given = _assignments(argument, is_script=False)
        elif os.path.isfile(argument):
            raise UserError(f"{argument} is not a config file, whose name ends in .py: data goes to a prepare script")
        else:
            named = f"config/finetune_{argument}.py"
            how = f"; did you mean {named}?" if os.path.isfile(named) else did_you_mean(argument)
            how = " (it is a folder)" if os.path.isdir(argument) else how
            how = how or "; settings are given as --key=value (see --help), and prepare_own.py writes config files"
            raise UserError(f"there is no config file {argument!r}{how}")
        for name, value, origin in given:
            settings[name] = _checked(name, value, origin, settings)
    start = Path(settings.get("init_from", "")).resolve()
    if settings.get("overwrite") and start.suffix == ".pt" and Path(settings["out_dir"]).resolve() in start.parents:
        raise UserError(f"--overwrite=True would remove {start}, where training is to start: name another out_dir")
    return make_dataclass("Settings", settings, frozen=True)(**settings)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], free: set[str]) -> str:
    """Describe which settings differ, except the free ones and those that `before` lacks; "" if none does."""
    changed = [name for name in now if name not in free and now[name] != before.get(name, now[name])]
    return "; ".join(f"{name} was {before[name]!r:.60} and is now {now[name]!r:.60}" for name in changed)


def _parsed(text: str, default: Any) -> Any:
    """Parse an argument as the type of its default; what is no literal stays text, which _checked() may refuse."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except NO_LITERAL:
        value = text
    if isinstance(default, list) and not isinstance(value, list):  # --label_words=bad,good
        return text.split(",")
    return value


def _assignments(path: str, is_script: bool) -> list[tuple[str, Any, str]]:
    """Find each `name = literal` line as (name, value, "path:line"); a config file may contain nothing else."""
    try:
        body = ast.parse(Path(path).read_text(encoding="utf-8-sig")).body
    except NO_LITERAL as error:  # not UTF-8, not Python's syntax, or NUL bytes
        raise UserError(f"{path}:{getattr(error, 'lineno', None) or 1}: not Python syntax: {error}") from None
    found = []
    for node in body:
        try:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                raise ValueError
            (target,) = node.targets if isinstance(node, ast.Assign) else [node.target]
            if not isinstance(target, ast.Name):
                raise ValueError
            name, value = target.id, ast.literal_eval(node.value)
        except NO_LITERAL:
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if is_script or is_docstring:
                continue
            raise UserError(f"{path}:{node.lineno}: a config file may only contain `name = literal` lines") from None
        if not is_script or name.islower():
            found.append((name, value, f"{path}:{node.lineno}"))
    return found


def _checked(name: str, value: Any, origin: str, settings: dict[str, Any]) -> Any:
    """Return value in its setting's type, or raise a UserError that says where it was set and what is expected."""
    if name not in settings:
        nearest = difflib.get_close_matches(name, settings, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "--help lists all settings"
        raise UserError(f"{origin}: unknown setting {name!r}; {hint}")
    expected = type(settings[name])
    if expected is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not expected:
        problem = f"of type {expected.__name__}, not {type(value).__name__}"
    elif expected is int and value >= 2**53:
        problem = "below 2**53, not"
    elif expected is float and not math.isfinite(value):
        problem = "a finite number, not"
    elif name in POSITIVE and value <= 0:
        problem = "above 0, not"
    elif name == "trainable_blocks" and value < -1:
        problem = "-1 or more, not"
    elif name != "trainable_blocks" and expected in (int, float) and value < 0:
        problem = "0 or more, not"
    elif name in BELOW_ONE and value >= 1:
        problem = "below 1, not"
    elif name in NAMES and not (value and value.isprintable()):
        problem = "a name, not"
    elif expected is str and value.encode(errors="ignore").decode() != value:  # bytes of another encoding
        problem = "text in UTF-8, not"
    elif expected is list and not all(isinstance(word, str) and word.isprintable() and word for word in value):
        problem = "a list of words, not"
    elif name in CHOICES and value not in CHOICES[name]:
        problem = f"one of {', '.join(CHOICES[name])}, not"
    else:
        return value
    raise UserError(f"{origin}: {name} must be {problem} {value!r:.60}")


def _help(script: str) -> str:
    """Return the script's docstring and, for each setting, its default and the comment beside it."""
    source = Path(script).read_text(encoding="utf-8")
    columns = shutil.get_terminal_size().columns
    shown = [ast.get_docstring(ast.parse(source)) or "", "", "settings and their defaults:"]
    for name, value, origin in _assignments(script, is_script=True):
        meaning = source.splitlines()[int(origin.rpartition(":")[2]) - 1].partition("  # ")[2]
        line = f"  {f'--{name}={value}':<32} {meaning}"
        shown.append(textwrap.fill(line, columns, subsequent_indent=" " * 35, break_on_hyphens=False))
    return "\n".join(shown)
