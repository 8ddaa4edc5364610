"""What changes in a directory, as Linux tells it (inotify(7))."""

import ctypes
import os
import struct
import weakref

# IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF
_EVENTS = 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
_EVENT = struct.Struct("iIII")  # before each name: the watch, the event, its cookie, and the length of the name
_LOCAL = {0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x01021994}  # ext4, xfs, btrfs, f2fs, tmpfs
_EVENTS_BYTES = 64 << 10


class DirectoryWatch:
    """The names that have changed in a directory since `changed` was called last. Not safe for threads.

    It is told of what was made, removed or renamed, got another time, or was closed after it was written. It is of
    use in the process that made it alone.
    """

    def __init__(self, directory: str, file: int, identity: tuple[int, int]) -> None:
        self._directory, self._file, self._identity = directory, file, identity
        self._process = os.getpid()
        weakref.finalize(self, os.close, file)

    def changed(self) -> set[str] | None:
        """The names. None where they are not known any more. Raises OSError where the directory is gone."""
        names: set[str] = set()
        if os.getpid() != self._process or _identify(self._directory) != self._identity:
            return None
        while True:
            try:
                data, place = os.read(self._file, _EVENTS_BYTES), 0
            except BlockingIOError:
                return names
            while place < len(data):
                *_, length = _EVENT.unpack_from(data, place)
                place += _EVENT.size + length
                name = data[place - length : place].rstrip(b"\0")
                if not name:  # of the directory itself, or there were too many
                    return None
                names.add(os.fsdecode(name))


def watch_directory(directory: str) -> DirectoryWatch | None:
    """A watch of a directory from now on. None where the system, or the file system, does not tell of all changes.

    Raises OSError where there is no directory.
    """
    identity = _identify(directory)
    library, path = ctypes.CDLL(None), os.fsencode(directory)
    found = ctypes.create_string_buffer(1024)
    if not hasattr(library, "inotify_init1") or library.statfs(path, found):
        return None
    if ctypes.c_long.from_buffer(found).value not in _LOCAL:  # statfs(2) has the type in front
        return None
    file = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if file < 0:
        return None
    watch = DirectoryWatch(directory, file, identity)
    return None if library.inotify_add_watch(file, path, _EVENTS) < 0 else watch


def _identify(directory: str) -> tuple[int, int]:
    found = os.stat(directory)
    return found.st_dev, found.st_ino
