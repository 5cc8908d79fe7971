"""SIGTERM and Ctrl-C end a stage cleanly: at once or, while a model trains, after the present step, whose state is then saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_received: signal.Signals | None = None
_held = False


class Stopped(SystemExit):
    """The process was asked to stop; its exit code is a shell's, 128 and the signal's number."""

    def __init__(self, number: signal.Signals):
        super().__init__(128 + number)
        self.signal = number


def install() -> None:
    """Answer the signals from now on. Python's own answer to Ctrl-C would tear an optimiser step apart."""
    for number in SIGNALS:
        signal.signal(number, _receive)


def _receive(number: int, frame: FrameType | None) -> None:
    global _received
    if _received is not None:
        return  # what cleans up is not stopped by a second one, as Ctrl-C and then a flow's SIGTERM are
    _received = signal.Signals(number)
    if not _held:
        raise Stopped(_received)


@contextmanager
def held() -> Iterator[None]:
    """Signals wait until `raise_received` is called, or `answered` begins."""
    global _held
    before, _held = _held, True
    try:
        yield
    finally:
        _held = before


@contextmanager
def answered() -> Iterator[None]:
    """Within `held`, a block that signals end, as one that waits does when it begins."""
    global _held
    _held = False
    try:
        raise_received()
        yield
    finally:
        _held = True


def received() -> bool:
    """Whether a signal waits."""
    return _received is not None


def raise_unless_held() -> None:
    """Stop, if a signal waits and this is not within `held`. Raises Stopped."""
    if not _held:
        raise_received()


def stop() -> None:
    """Stop for the signal that waits, or that another process has got.

    Raises:
        Stopped: always.
    """
    raise Stopped(_received or signal.SIGTERM)


def raise_received() -> None:
    """Stop, if a signal waits.

    Raises:
        Stopped: one does.
    """
    if _received is not None:
        raise Stopped(_received)
