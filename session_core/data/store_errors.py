"""What a store raises, and what each of these errors means to a caller."""

from session_core.data.session import SESSION_ID


class SessionNotFound(Exception):
    """There is no session of this id, or the id has not the form of one."""


class SessionExists(Exception):
    """There is a session of this id already."""


class SessionBusy(Exception):
    """Another caller has locked the session, in this process or in another one."""


class SessionCorrupt(Exception):
    """What is stored cannot be understood. It is left as it is."""


class StorageUnavailable(Exception):
    """The store cannot be read or written now. What was stored before is intact."""


class LockLost(StorageUnavailable):
    """This process was too slow: another one has locked the session since, or has ended our turn."""


class FeedGap(StorageUnavailable):
    """Lines that another process has published of its turn are gone."""


def checked_id(session_id: str) -> str:
    """The id, if it has the form of one. Raises SessionNotFound."""
    if not SESSION_ID.fullmatch(session_id):
        raise SessionNotFound(session_id)
    return session_id
