"""SIGINT (Ctrl-C) and SIGTERM ask a run to stop, at the next point where nothing is half done; before, Ctrl-C ends it.

Every script imports this module before anything else.
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType


class Stopped(Exception):
    """A signal asked the run to stop; its number is the argument."""


def quiet_interrupt() -> None:
    """Let Ctrl-C end the process without a traceback, but for what errors.run() runs: while modules are imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def note_signals() -> Callable[[], int]:
    """Have both signals noted from now on, and return the function that tells which one has come, 0 for none.

    A second SIGINT ends the process at once. A signal that is ignored, as under nohup, stays ignored.
    """
    received = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            os._exit(128 + number)
        received.append(number)
        if len(received) == 1:  # os.write: print may be in the middle of something
            with suppress(OSError):
                os.write(2, b"\nstopping, without the step at hand (Ctrl-C again: at once, without saving)\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, note)
    return lambda: received[0] if received else 0


def ignore_signals() -> Callable[[], int]:
    """Have both signals ignored: of several processes the first one heeds them, and its end is the others' end.

    Were another to leave first, the first would wait for it, and not get to saving.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return lambda: 0
