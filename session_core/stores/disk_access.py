"""Whole reads, whole writes, directories whose changes are durable, and what the system refuses."""

import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator

from session_core.stores.file_locks import close_unlocked, lock_waiting
from storage import StorageUnavailable

log = logging.getLogger(__name__)

_MAX_BYTES = 64 << 20  # of a journal or a queue
_READ_BYTES = 64 << 10  # in which most files are read at once


@contextlib.contextmanager
def unavailable(verb: str, what: str, level: int = logging.ERROR) -> Iterator[None]:
    """Logs the system's errors and raises StorageUnavailable for them."""
    try:
        yield
    except OSError as error:
        log.log(level, "cannot %s %s: %s", verb, what, error)
        raise StorageUnavailable(f"cannot {verb} {what}: {error.strerror or error}") from error


@contextlib.contextmanager
def synced(directory: str) -> Iterator[int]:
    """Makes the changes in the directory durable. Opens it first, so that nothing changes if that fails. Yields it
    open."""
    with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as file:
        yield file
        os.fsync(file)


@contextlib.contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """The file at the path, which is made where the flags say so, for nobody else to read. Raises OSError."""
    file = os.open(path, flags, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def make_directory(path: str) -> None:
    """Makes the directory and those above it, durably, where they are missing."""
    if not os.path.isdir(path):
        parent = os.path.dirname(path)
        make_directory(parent)
        with synced(parent), contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)


def try_writing(directory: str) -> None:
    """Writes something there that is gone at once. Raises OSError where that fails."""
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        file.write(b"the store can be written\n")


def read_all(file: int) -> bytes:
    """All that is in the file, from its beginning."""
    data = b""
    most = os.fstat(file).st_size + 1  # one read, as a rule
    while block := os.pread(file, most, len(data)):
        data += block
        most = 1 << 16
    return data


def read_file(path: str) -> bytes:
    """All that is in a file, by few calls of the system. Waits for no FIFO, and follows no link: raises OSError."""
    with opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as file:
        data = os.read(file, _READ_BYTES)
        return data if len(data) < _READ_BYTES else read_all(file)


def read_regular(path: str, max_bytes: float = _MAX_BYTES) -> bytes | None:
    """All that is in a file. None where there is none, or, with a warning, none that this program can have written.
    Raises OSError."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        found = os.lstat(path)
        if stat.S_ISREG(found.st_mode) and found.st_size <= max_bytes:
            return read_file(path)
        log.warning("%s is left alone: it is no regular file, or larger than %s bytes", path, max_bytes)
    return None


def write_file(path: str, temporary: str, data: bytes) -> None:
    """Puts a file with this data at the path, by way of another one, and syncs it. The caller syncs the directory.
    Raises OSError; then nothing has changed."""
    with opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
        try:
            write_all(file, data, 0)
            os.fsync(file)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def write_all(file: int, data: bytes, offset: int) -> None:
    """Writes all of the data at this place."""
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def rename_new(path: str, target: str) -> None:
    """Renames a file where no file has the new name. Raises FileExistsError where one has.

    Without hard links (exFAT, vboxsf, some SMB servers), a crash can leave an empty file of the new name.
    """
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except OSError:
        empty = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            lock_waiting(empty)  # so that whoever locks a session waits for the one that is renamed
            os.rename(path, target)
        except BaseException:
            os.unlink(target)
            raise
        finally:
            close_unlocked(empty)
    else:
        os.unlink(path)


def version_of(found: os.stat_result) -> tuple[int, ...]:
    """What tells two contents of a file apart: the file, its size and its times."""
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
