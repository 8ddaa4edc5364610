"""Users and their tokens."""

import hashlib
import hmac
import logging
import re

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
