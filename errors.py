"""Errors for the person: one line on stderr and exit status 1, a traceback only for our own bugs."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

Result = TypeVar("Result")


class UserError(Exception):
    """Something that input, files, settings or the machine caused. The message says what, where and what to do."""


def run(main: Callable[[], Result], after_interrupt: str = "") -> Result:
    """Return main(), the body of a script, and turn what the person can mend into one line on stderr.

    Args:
        main: takes no arguments.
        after_interrupt: what to say on Ctrl-C beyond "interrupted".

    Exit status: 1 for a UserError, an OSError (disk full, no permission) or exhausted memory; 130 for Ctrl-C.
    """
    try:
        result = main()
        sys.stdout.flush()
        return result
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # the reader of our output left, as `head` does: nothing more to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except MemoryError:
        fail("out of memory: use a smaller batch_size, block_size or model")
    except KeyboardInterrupt:
        print(f"interrupted{after_interrupt}", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as shells have it


def fail(message: str) -> NoReturn:
    """Print one line on stderr, control characters made visible, and exit with status 1."""
    line = " ".join(message.split())
    print("error: " + "".join(c if c.isprintable() else repr(c)[1:-1] for c in line), file=sys.stderr)
    sys.exit(1)
