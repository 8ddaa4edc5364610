"""The locks of a session's file: one for whoever changes it, and a mark that a turn runs.

The mark is a second lock, on the open file description. The kernel tells who holds it without a try to lock it
(fcntl(2), F_OFD_GETLK), which flock does not offer. The two kinds of locks do not see each other. The kernel lifts
both when the process dies.
"""

from __future__ import annotations

import os
import struct

try:
    import fcntl
except ImportError:  # Windows, where sessions live in memory only
    fcntl = None  # type: ignore[assignment]

SUPPORTED = fcntl is not None

_STRUCT_FLOCK = "hhqqi4x"  # type, whence, start, length, pid


def lock_now(file: int) -> bool:
    """Locks the file, or gives False where it is locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_waiting(file: int) -> None:
    """Locks the file, and waits for that."""
    fcntl.flock(file, fcntl.LOCK_EX)


def mark_turn(file: int) -> None:
    """Marks the file as that of a session in which a turn runs."""
    if hasattr(fcntl, "F_OFD_SETLK"):
        _turn_lock(file, fcntl.F_OFD_SETLK)


def turn_marked(file: int) -> bool:
    """Whether another open file description has marked the file.

    macOS has no such locks. There, any lock counts as a turn, and a caller that locks in this moment can fail.
    """
    if hasattr(fcntl, "F_OFD_GETLK"):
        return _turn_lock(file, fcntl.F_OFD_GETLK)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _turn_lock(file: int, command: int) -> bool:
    lock = struct.pack(_STRUCT_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    return bool(struct.unpack(_STRUCT_FLOCK, fcntl.fcntl(file, command, lock))[0] != fcntl.F_UNLCK)
