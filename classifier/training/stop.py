"""The stop flag: Ctrl-C, SIGTERM and their like set it; the training loop checks it where it can stop."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# a closed terminal sends SIGHUP, Windows SIGBREAK, and schedulers one of the last three before a job's time ends
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
requested = 0  # the number of the signal that has come


class Stopped(Exception):
    """Raised by check() once a signal has come."""


@contextmanager
def listening(is_first: bool) -> Iterator[None]:
    """Let signals set the flag for the length of a block; of several processes only the first listens."""
    global requested
    requested = 0
    is_main = threading.current_thread() is threading.main_thread()  # no other thread can listen
    handlers = {number: signal.getsignal(number) for number in SIGNALS if is_main}
    for number, handler in handlers.items():
        if not is_first:  # the first one's end ends the others
            signal.signal(number, signal.SIG_IGN)
        elif handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _request)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def check() -> None:
    """Raise Stopped if a signal has come."""
    if requested:
        raise Stopped


def _request(number: int, _: FrameType | None) -> None:
    global requested
    if requested and number == signal.SIGINT:  # a second Ctrl-C
        if "IPython" in sys.modules:  # a notebook's kernel stays alive
            raise KeyboardInterrupt
        os._exit(128 + number)  # Python would drop an exception in the middle of a destructor
    requested = number
    with suppress(OSError):  # os.write, since print may be interrupted in the middle
        os.write(2, b"\nstopping: the current step is dropped (Ctrl-C again: quit now, without saving)\n")
