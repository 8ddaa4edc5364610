"""The locks of a session's file: one for whoever changes it, and a mark that a turn runs.

The mark is a second lock, on the open file description. The kernel tells who holds it without a try to lock it
(fcntl(2), F_OFD_GETLK), which flock does not offer. The two kinds of locks do not see each other. The kernel lifts
both when the process dies.

Both belong to the open file description, which a forked child shares. So whoever is done unlocks the file and does
not rely on closing it, and a child lets go of all files in the directories of sessions as it begins: else a child
that outlives a killed server would hold its sessions.
"""

import contextlib
import os
import struct

try:
    import fcntl
except ImportError:  # Windows, where sessions live in memory only
    fcntl = None  # type: ignore[assignment]

SUPPORTED = fcntl is not None

_STRUCT_FLOCK = "hhqqi4x"  # type, whence, start, length, pid
_OPEN_FILES = "/proc/self/fd"
_directories: set[str] = set()  # of which a forked child keeps no file open


def release_in_children(directory: str) -> None:
    """Has each process that is forked from now on let go of the locked files in this directory.

    Without /proc (macOS), a child that outlives a killed server holds the sessions that were locked then.
    """
    if not _directories and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_let_go)
    _directories.add(os.path.realpath(directory))


def _let_go() -> None:
    """Puts /dev/null in place of the files, so that what still knows their numbers can write to nothing else."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for name in os.listdir(_OPEN_FILES):
            with contextlib.suppress(OSError):  # the one that lists them is closed by now
                if os.path.dirname(os.readlink(f"{_OPEN_FILES}/{name}")) in _directories:
                    os.dup2(null, int(name), inheritable=False)
        os.close(null)


def lock_now(file: int, *, shared: bool = False) -> bool:
    """Locks the file, or gives False where it is locked."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_waiting(file: int) -> None:
    """Locks the file, and waits for that."""
    fcntl.flock(file, fcntl.LOCK_EX)


def close_unlocked(file: int) -> None:
    """Unlocks the file for every process that shares it, and closes it."""
    try:
        with contextlib.suppress(OSError):
            _set_mark(file, fcntl.F_UNLCK)
            fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)


def mark_turn(file: int) -> None:
    """Marks the file as that of a session in which a turn runs."""
    _set_mark(file, fcntl.F_WRLCK)


def turn_marked(file: int) -> bool:
    """Whether another open file description has marked the file.

    macOS has no such locks. There, any lock counts as a turn, and a caller that locks in this moment can fail.
    """
    if hasattr(fcntl, "F_OFD_GETLK"):
        lock = struct.pack(_STRUCT_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        found = struct.unpack(_STRUCT_FLOCK, fcntl.fcntl(file, fcntl.F_OFD_GETLK, lock))
        return bool(found[0] != fcntl.F_UNLCK)
    return not lock_now(file, shared=True)


def _set_mark(file: int, kind: int) -> None:
    if hasattr(fcntl, "F_OFD_SETLK"):
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(_STRUCT_FLOCK, kind, os.SEEK_SET, 0, 0, 0))
