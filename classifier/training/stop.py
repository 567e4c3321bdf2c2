"""The stop flag: Ctrl-C, SIGTERM or a closed terminal set it; the training loop checks it where it can stop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
requested = 0  # the number of the signal that has come


class Stopped(Exception):
    """Raised by check() once a signal has come."""


@contextmanager
def listening(is_first: bool) -> Iterator[None]:
    """Let signals set the flag for the length of a block; of several processes only the first listens."""
    global requested
    requested = 0
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
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
        os._exit(128 + number)
    requested = number
    with suppress(OSError):  # os.write, since print may be interrupted in the middle
        os.write(2, b"\nstopping: the current step is dropped (Ctrl-C again: quit now, without saving)\n")
