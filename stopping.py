"""SIGINT (Ctrl-C) and SIGTERM ask a run to stop, at the next point where nothing is half done."""

import os
import signal
from collections.abc import Callable
from types import FrameType


class Stopped(Exception):
    """A signal asked the run to stop; its number is the argument."""


def note_signals(unit: str) -> Callable[[], int]:
    """Have both signals noted from now on, and return the function that tells which one has come, 0 for none.

    A second SIGINT ends the process at once. A signal that is ignored, as under nohup, stays ignored.

    Args:
        unit: what will be finished before the run stops, for the message.
    """
    received = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            os._exit(128 + number)
        received.append(number)
        if len(received) == 1:  # os.write: print may be in the middle of something
            os.write(2, f"\nstopping after this {unit} (Ctrl-C again: at once, without saving)\n".encode())

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, note)
    return lambda: received[0] if received else 0
