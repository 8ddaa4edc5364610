"""SIGHUP, also while the program starts."""

import os
import signal
from collections.abc import Callable

_held: list[int] = []


def hold_hangups() -> None:
    """Keeps what SIGHUP asks for until `handle_hangups`, and ends nothing. Imports no other room, so that it can run
    before the program is loaded."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda number, _frame: _held.append(number))


def handle_hangups(handle: Callable[[], object], *, needed: bool) -> None:
    """Calls the function at SIGHUP, and at once where one came before. Unless the function is `needed`, SIGHUP ends a
    process that has a terminal, which was closed. A service manager that reloads a server ends none."""
    if not hasattr(signal, "SIGHUP"):
        return
    if needed or not _has_terminal():
        signal.signal(signal.SIGHUP, lambda _number, _frame: handle())
    elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if _held:
        _held.clear()
        signal.raise_signal(signal.SIGHUP)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
