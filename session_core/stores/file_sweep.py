"""The files in a directory of sessions, and the end of those that a crash has left."""

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence

from session_core.stores.disk_access import opened, read_file, unavailable
from session_core.stores.file_attachments import settle_files
from session_core.stores.file_journal import remove_journal
from storage import SESSION_ID

SESSION_FILE = re.compile(rf"({SESSION_ID.pattern})\.json")
JOURNAL_FILE = re.compile(rf"\.({SESSION_ID.pattern})\.journal")
_QUEUE_FILE = re.compile(rf"\.({SESSION_ID.pattern})\.queue")
_FILES_DIRECTORY = re.compile(rf"\.({SESSION_ID.pattern})\.files")
_TEMPORARY_FILE = re.compile(rf"\.({SESSION_ID.pattern}\.)?[0-9a-f]{{16}}\.tmp")
_ORPHAN_SECONDS = 3600.0  # after which a temporary file is the rest of a crash


def scan(directory: str, names: Iterable[str] | None = None) -> Iterator[tuple[int, str]]:
    """When each session's file was last changed, in nanoseconds, and the session's id, of all files in the directory
    or of those with these names. Raises OSError."""
    with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as place:
        for name in os.listdir(place) if names is None else names:
            if (file := SESSION_FILE.fullmatch(name)) and (modified := modified_at(name, place)) is not None:
                yield modified, file[1]


def modified_at(name: str, directory: int | None = None) -> int | None:
    """When a session's file was last changed, in nanoseconds. None where there is none. Raises OSError."""
    try:  # suppress() is slower, and there may be a hundred thousand files; so is a path
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_mtime_ns if stat.S_ISREG(found.st_mode) else None


def read_contents(directory: str, ids: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
    """These ids with the contents of their files, None where a file cannot be read."""
    return ((id, _read(os.path.join(directory, f"{id}.json"))) for id in ids)


def _read(path: str) -> bytes | None:
    try:  # suppress() is slower
        return read_file(path)
    except OSError:
        return None


def sweep(directory: str) -> None:
    """Removes temporary files that a crash has left, empty files of sessions that it has kept from being made,
    journals and queues without a session, and pictures and files that no message names. Raises OSError where the
    directory cannot be listed."""
    with os.scandir(directory) as entries:
        for entry in entries:
            beside = JOURNAL_FILE.fullmatch(entry.name) or _QUEUE_FILE.fullmatch(entry.name)
            if beside and not os.path.exists(os.path.join(directory, f"{beside[1]}.json")):
                remove_journal(entry.path)
            with contextlib.suppress(OSError):
                if files := _FILES_DIRECTORY.fullmatch(entry.name):
                    told_in = [os.path.join(directory, name) for name in (f"{files[1]}.json", f".{files[1]}.queue")]
                    settle_files(entry.path, told_in, time.time() - _ORPHAN_SECONDS)
                if _is_left(entry):
                    os.unlink(entry.path)


def queued_sessions(directory: str) -> Iterator[str]:
    """The ids of the sessions in whose queue there may be messages. Raises StorageUnavailable."""
    with unavailable("list", directory):
        found = map(_QUEUE_FILE.fullmatch, os.listdir(directory))
    yield from (file[1] for file in found if file)


def _is_left(entry: os.DirEntry[str]) -> bool:
    named, temporary = SESSION_FILE.fullmatch(entry.name), _TEMPORARY_FILE.fullmatch(entry.name)
    if not (named or temporary):
        return False
    found = entry.stat(follow_symlinks=False)
    old = found.st_ctime < time.time() - _ORPHAN_SECONDS
    return old and (temporary is not None or (entry.is_file(follow_symlinks=False) and found.st_size == 0))
