"""Users and their tokens, and the turns and the store of each."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
from collections.abc import Callable, Iterable

from session_core.turns.turns import Turns
from session_core.web.flag_values import SettingsError

log = logging.getLogger(__name__)


class Users:
    """The users of a file, by their tokens. Safe for any number of threads.

    A line of the file is `name token` or `name sha256:<hex of the token's digest>`. `#` begins a comment. A name may
    have several lines, and so several tokens. Raises SettingsError for a file that cannot be read so.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._names = _read(path)

    @property
    def names(self) -> set[str]:
        """All users."""
        return set(self._names.values())

    def find_user(self, token: str) -> str | None:
        """The user who has this token. Takes as long whoever that is."""
        digest, found = hashlib.sha256(token.encode("latin-1")).digest(), None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def reload(self) -> None:
        """Reads the file again. A file with an error changes nothing, and the log says so."""
        try:
            self._names = _read(self._path)
            log.info("the file of users was read again: %d users", len(self.names))
        except SettingsError as error:
            log.error("the file of users stays as it was: %s", error)


def _read(path: str) -> dict[bytes, str]:
    """The names by the digests of their tokens."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    found: dict[bytes, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not re.fullmatch(r"[a-z0-9_-]{1,32}", words[0]):
            raise SettingsError(f"{path} line {number} must be a name of a-z, 0-9, _ and -, and a token")
        name, token = words
        hashed = re.fullmatch(r"sha256:([0-9a-f]{64})", token.lower())
        if (token.lower().startswith("sha256:") and not hashed) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise SettingsError(f"{path} line {number}: give a token of visible ASCII, or sha256: and 64 hex digits")
        digest = bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(token.encode()).digest()
        if found.setdefault(digest, name) != name:
            raise SettingsError(f"{path} line {number} has the token of another user: give each one of their own")
    if not found:
        raise SettingsError(f"{path} has no users: give a line with a name and a token")
    return found


class TurnsByUser:
    """The turns of each user, over a store of each user's own. Safe for any number of threads.

    `make` gives the Runs for a name; those of `names` are made now. Raises what `make` raises.
    """

    def __init__(self, make: Callable[[str], Turns], names: Iterable[str]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._runs: dict[str, Turns] = {}
        self._closing = False
        for name in sorted(names):
            self.of(name)

    def of(self, name: str) -> Turns:
        """The turns of this user."""
        with self._lock:
            if name not in self._runs:
                self._runs[name] = self._make(name)
                if self._closing:
                    self._runs[name].shut_down(0)
            return self._runs[name]

    def add(self, name: str, runs: Turns) -> None:
        """Adds turns of no user, under a name that no user can have."""
        with self._lock:
            self._runs[name] = runs

    def all(self) -> list[Turns]:
        """The turns of all users so far."""
        with self._lock:
            return list(self._runs.values())

    @property
    def closing(self) -> bool:
        """Whether no new turn starts any more."""
        return self._closing and all(runs.closing for runs in self.all())

    def shut_down(self, grace: float) -> None:
        """Shuts all down at the same time. See `Turns.shut_down`."""
        self._closing = True
        threads = [threading.Thread(target=runs.shut_down, args=(grace,)) for runs in self.all()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
