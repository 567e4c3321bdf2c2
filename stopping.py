"""SIGINT (Ctrl-C) and SIGTERM ask a run to stop, at the next point where nothing is half done."""

import os
import signal
from collections.abc import Callable
from types import FrameType


class Stopped(Exception):
    """A signal asked the run to stop; its number is the argument."""


def stop_on_signals() -> Callable[[], None]:
    """Have both signals noted from now on, and return the function that raises Stopped once one has come.

    A second SIGINT ends the process at once. A signal that is ignored, as under nohup, stays ignored.
    """
    received = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            os._exit(128 + number)
        received.append(number)
        if len(received) == 1:  # os.write: print may be in the middle of something
            os.write(2, b"\nstopping after this micro-batch (Ctrl-C again: at once, without saving)\n")

    def stop_if_asked() -> None:
        if received:
            raise Stopped(received[0])

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, note)
    return stop_if_asked
