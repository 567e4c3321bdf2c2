"""Errors for the user: one message on stderr and exit status 1; a traceback only for our own bugs."""

import argparse
import difflib
import errno
import gc
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeVar

Result = TypeVar("Result")
CLOSE = 0.8  # how similar a name must be to be suggested
# torch's words for it on a CPU, on a GPU, and cuBLAS's
OUT_OF_MEMORY = ["can't allocate memory", "not enough memory", "out of memory", "size calculation overflowed"]
OUT_OF_MEMORY += ["ALLOC_FAILED"]


class UserError(Exception):
    """Caused by input, files, settings or the machine. The message says what is wrong, where, and what to do."""


def run(main: Callable[[], Result]) -> Result:
    """Return main(), the body of a script; print what the user can mend as one message on stderr.

    Exit status: 1 for a UserError, an OSError, a missing package or exhausted memory; 130 for Ctrl-C.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as a daemon's
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")  # no character may stop the output
    try:
        result = main()
        sys.stdout.flush()
        return result
    except UserError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        fail(f"the package {error.name} is not installed: run {how_to_install(error.name or '')}")
    except OSError as error:
        if is_closed_pipe(error):  # the reader of our output has left, as `head` does
            end(1)
        fail(explain(error))
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            fail("out of memory: use a smaller token_budget, block_size or model, or close other programs")
        if "not currently implemented for the MPS device" in str(error):
            how = "set the environment variable PYTORCH_ENABLE_MPS_FALLBACK=1, or add --device=cpu"
            fail(f"{str(error).partition(' is not currently')[0]} is missing on Apple's GPUs: {how}")
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):  # no compiler, or an older GPU
            fail(f"torch.compile does not work on this machine ({str(error):.200}): leave out --compile=True")
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        end(130)  # 128 + SIGINT, as shells have it


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the machine's or the GPU's memory was exhausted."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def explain(error: OSError) -> str:
    """Return the system's message, the file if there is one, and the place in the code, but not in a library's."""
    message = "Broken pipe" if is_closed_pipe(error) else error.strerror or str(error)
    if error.filename:
        message = f"{error.filename}: {message}"
    libraries = (sys.prefix, sys.base_prefix, "<")  # Python's own and what is installed
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(libraries):
            return f"{message} ({Path(frame.filename).name}, line {frame.lineno})"
    return message


def is_closed_pipe(error: OSError) -> bool:
    """Return whether the reader of our output has left; Windows calls that an invalid argument."""
    is_windows = os.name == "nt" and error.errno == errno.EINVAL and not error.filename
    return isinstance(error, BrokenPipeError) or is_windows


def how_to_install(package: str) -> str:
    """Return the command that installs a package by the name under which it is imported."""
    optional = {"pyarrow": "to read and write .parquet", "openpyxl": "to read and write .xlsx"}
    optional |= {"tensorboard": "for tensorboard_log", "wandb": "for wandb_log"}
    package = package.partition(".")[0]
    if package in optional:
        return f"`pip install {package}` {optional[package]}"
    if package == "gradio":
        return "`pip install -r requirements-app.txt`"
    return "`pip install -r requirements.txt`"


def own_rank() -> str:
    """Return this process's number as torchrun sets it, "0" for a single one; an empty variable is an unset one."""
    return os.environ.get("RANK") or "0"


def fail(message: str) -> NoReturn:
    """Print a message on stderr, with the process's number under torchrun, and exit with status 1."""
    who = "" if own_rank() == "0" else f"process {own_rank()}: "
    print(wrapped("error: " + who + " ".join(message.split())), file=sys.stderr)
    end(1)


def end(status: int) -> NoReturn:
    """Exit; what stdout has buffered and cannot write, on a full disk or without a reader, is dropped."""
    let_go(sys.exc_info()[1])
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def did_you_mean(path: str | Path, names: Iterable[str] = ()) -> str:
    """Return "; did you mean data/sst?" for a path that is not there; "" if nothing there has a similar name.

    names: what else could have been meant.
    """
    if Path(path).exists():  # but it is a folder, or not what is needed
        return ""
    found = _nearest(Path(path)) or next(iter(difflib.get_close_matches(str(path), names, n=1, cutoff=CLOSE)), "")
    return f"; did you mean {found}?" if found else ""


def _nearest(path: Path) -> Path | None:
    """Return the path if it is there, or else the one with the most similar name in the most similar folder."""
    if path.exists() or path == path.parent:
        return path
    folder = _nearest(path.parent)
    if folder is None or not folder.is_dir():
        return None
    if (folder / path.name).exists():
        return folder / path.name
    matches = difflib.get_close_matches(path.name, [each.name for each in folder.iterdir()], n=1, cutoff=CLOSE)
    return folder / matches[0] if matches else None


def let_go(error: BaseException | None) -> None:
    """Free what an error's frames refer to; files that fail again when they are closed do not say so again."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()
    sys.unraisablehook = hook


def printable(text: str) -> str:
    """Return text with its control characters, which could rewrite the terminal, made visible."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def wrapped(line: str) -> str:
    """Return a line, its control characters made visible, wrapped at 80 columns; names and options stay whole."""
    return textwrap.fill(printable(line), 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def tell(line: str) -> None:
    """Print a note, wrapped at 80 columns."""
    print(wrapped(line))


class Parser(argparse.ArgumentParser):
    """A parser that reports errors as fail does."""

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        for word in (word.partition("=")[0] for word in sys.argv[1:] if word.startswith("--")):
            if not any(option.startswith(word) for option in known):
                message += "".join(f"; did you mean {near}?" for near in difflib.get_close_matches(word, known, n=1))
        fail(f"{message} (--help shows the options)")


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser that shows a script's docstring unchanged."""
    return Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
