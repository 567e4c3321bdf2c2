"""Errors for the person: one line on stderr and exit status 1, a traceback only for our own bugs."""

import argparse
import os
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TypeVar

Result = TypeVar("Result")
# how torch words it, on a CPU, on a GPU, and of cuBLAS
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "size calculation overflowed")
OUT_OF_MEMORY += ("ALLOC_FAILED",)


class UserError(Exception):
    """Something that input, files, settings or the machine caused. The message says what, where and what to do."""


def run(main: Callable[[], Result]) -> Result:
    """Return main(), the body of a script, and turn what the person can mend into one line on stderr.

    Exit status: 1 for a UserError, an OSError (disk full, no permission), a missing package or exhausted memory; 130
    for Ctrl-C.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as a daemon's
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")  # no character shall stop the output
    try:
        result = main()
        sys.stdout.flush()
        return result
    except UserError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        how = f"`pip install -r requirements.txt`, or `pip install {error.name}` for one that is only asked for here"
        fail(f"the package {error.name} is not installed: run {how}")
    except BrokenPipeError:  # the reader of our output left, as `head` does: nothing more to say to it
        end(1)
    except OSError as error:
        fail(in_words(error))
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            fail("out of memory: use a smaller token_budget, block_size or model, or free some")
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        end(130)  # 128 + SIGINT, as shells have it


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory, the machine's or the GPU's, was exhausted."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def in_words(error: OSError) -> str:
    """Return what the system says is wrong, and with which file if it names one."""
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)


def fail(message: str) -> NoReturn:
    """Print one line on stderr, with the process's number if torchrun has started several, and exit with status 1."""
    rank = os.environ.get("RANK", "0")
    who = "" if rank == "0" else f"process {rank}: "
    print("error: " + who + printable(" ".join(message.split())), file=sys.stderr)
    end(1)


def end(status: int) -> NoReturn:
    """Exit; what stdout still keeps and cannot take, on a full disk or without a reader, is dropped first."""
    sys.unraisablehook = lambda _: None  # files that fail once more when they are closed at the end have been told of
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def printable(text: str) -> str:
    """Return text with control characters made visible, which else could rewrite the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def tell(line: str) -> None:
    """Print something that is to be known, wrapped at 80 columns."""
    print(textwrap.fill(printable(line), 80, subsequent_indent="  "))


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser that shows a script's docstring as it stands and fails like everything else here."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: fail(f"{message} (--help shows the options)")
    return parser
