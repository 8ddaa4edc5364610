"""The pictures and files of a session, in a directory beside the session's file, each under its SHA-256.

A file that was not there yet is kept as `<sha256>.new`, synced, before the message that names it is stored. A start
an hour later looks whether one does: then the file gets its name, else it goes.
"""

import contextlib
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence

from session_core.data.kept_files import KeptFiles
from session_core.data.message import SHA256
from session_core.stores.disk_access import read_regular, synced, unavailable, write_file
from session_core.stores.file_locks import lock_waiting

_UNSURE = ".new"  # behind the name of a file until a start has found that a message names it
_NAMES = re.compile(rb"[0-9a-f]{64}")


class DirectoryFiles(KeptFiles):
    """The files of the sessions in a directory, those of each session in a directory of their own."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def keep(self, session_id: str, files: Mapping[str, bytes]) -> None:
        with unavailable("keep the files of", session_id), self._made(session_id) as directory:
            for name, data in files.items():
                if not os.path.exists(os.path.join(directory, name)):
                    _write(directory, name, data)

    def share(self, source_id: str, session_id: str, names: Iterable[str]) -> None:
        with unavailable("copy the files of", source_id), self._made(session_id) as directory:
            for name in names:
                for found in (name, name + _UNSURE, name):  # it may be named meanwhile
                    with contextlib.suppress(FileNotFoundError, FileExistsError):
                        _share(os.path.join(self._path(source_id), found), directory, name)

    def read(self, session_id: str, name: str) -> bytes | None:
        # The same name again, since it may be named meanwhile.
        paths = (os.path.join(self._path(session_id), one) for one in (name, name + _UNSURE, name))
        with unavailable("read a file of", session_id):
            return next((data for path in paths if (data := read_regular(path, math.inf)) is not None), None)

    def remove(self, session_id: str) -> None:
        shutil.rmtree(self._path(session_id), ignore_errors=True)

    def _path(self, session_id: str) -> str:
        return os.path.join(self._directory, f".{session_id}.files")

    @contextlib.contextmanager
    def _made(self, session_id: str) -> Iterator[str]:
        """The session's directory, which is made where it is missing, for files that are durable afterwards."""
        directory = self._path(session_id)
        if not os.path.isdir(directory):
            with synced(self._directory), contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
        with synced(directory) as opened:
            lock_waiting(opened)  # so that no start of another process takes a file for left by a crash
            yield directory


def settle_files(directory: str, told_in: Sequence[str], before: float) -> None:
    """Looks at the files that were kept before this time: those that are named in one of `told_in`, of which the
    first is the session's file, get their names, and others go. Without a session, all go. Raises OSError."""
    with synced(directory) as opened:
        lock_waiting(opened)
        if not os.path.exists(told_in[0]):
            if os.fstat(opened).st_mtime < before:
                shutil.rmtree(directory, ignore_errors=True)
            return
        with os.scandir(directory) as entries:
            unsure = [one for one in entries if not SHA256.fullmatch(one.name) and one.stat().st_mtime < before]
        known = _names_in(told_in) if unsure else set()
        for entry in unsure:
            name = entry.name.removesuffix(_UNSURE)
            if name in known:
                os.rename(entry.path, os.path.join(directory, name))
            else:
                os.unlink(entry.path)


def _names_in(paths: Iterable[str]) -> set[str]:
    """All names of files that stand somewhere in these files, in whatever form those have."""
    found: set[str] = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            found.update(name.decode() for name in _NAMES.findall(file.read()))
    return found


def _share(path: str, directory: str, name: str) -> None:
    try:
        os.link(path, os.path.join(directory, name + _UNSURE), follow_symlinks=False)
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError:  # no hard links here
        with open(path, "rb") as file:
            _write(directory, name, file.read())


def _write(directory: str, name: str, data: bytes) -> None:
    temporary = os.path.join(directory, f"{secrets.token_hex(8)}.tmp")
    write_file(os.path.join(directory, name + _UNSURE), temporary, data)
