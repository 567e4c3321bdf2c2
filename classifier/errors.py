"""Errors for the person: one line on stderr and exit status 1, a traceback only for our own bugs."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO, TypeVar

from classifier.signals import quiet_interrupt

Result = TypeVar("Result")
# how torch words it, on a CPU and on a GPU
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "size calculation overflowed")


class UserError(Exception):
    """Something that input, files, settings or the machine caused. The message says what, where and what to do."""


class Lasting:
    """A text stream that never fails: what cannot be printed, on a full disk or to a reader that has left, is lost."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.failure = stream, ""

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            self.failure = error.strerror or str(error)
            silence(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def run(main: Callable[[], Result], after_interrupt: str = "", must_print: bool = True) -> Result:
    """Return main(), the body of a script, and turn what the person can mend into one line on stderr.

    Args:
        main: takes no arguments.
        after_interrupt: what to say on Ctrl-C beyond "interrupted".
        must_print: end as soon as something cannot be printed; else only the exit status says so, at the end.

    Exit status: 1 for a UserError, an OSError (disk full, no permission) or exhausted memory; 130 for Ctrl-C.
    """
    prepare_streams()
    output = Lasting(sys.stdout)
    if not must_print:
        sys.stdout = output
    is_quiet = signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # see quiet_interrupt
    try:
        if is_quiet:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        result = main()
        sys.stdout.flush()
        if output.failure:
            raise UserError(f"all is done, but not all of it could be printed: {output.failure}")
        return result
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # the reader of our output left, as `head` does: nothing more to say to it
        silence(sys.stdout)
        sys.exit(1)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            fail("out of memory: use a smaller token_budget, block_size or model, or free some")
        raise
    except KeyboardInterrupt:
        print(f"interrupted{after_interrupt}", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as shells have it
    finally:
        if is_quiet:
            quiet_interrupt()


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory, the machine's or the GPU's, was exhausted."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def prepare_streams() -> None:
    """Give closed standard streams a place to go, and let no character stop the output."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stderr, Lasting):
        sys.stderr = Lasting(sys.stderr)  # where an error cannot be told, the exit status still is right


def silence(stream: TextIO) -> None:
    """Let everything that goes to a stream, what it still keeps included, go nowhere from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def fail(message: str) -> NoReturn:
    """Print one line on stderr, with the process's number if torchrun has started several, and exit with status 1."""
    rank = os.environ.get("RANK", "0")
    who = "" if rank == "0" else f"process {rank}: "
    print("error: " + who + printable(" ".join(message.split())), file=sys.stderr)
    sys.exit(1)


def printable(text: str) -> str:
    """Return text with control characters made visible, which else could rewrite the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser that shows a script's docstring as it stands and fails like everything else here."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        fail("this script is a single process: start it with python, not with torchrun")
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: fail(f"{message} (--help shows the options)")
    return parser
