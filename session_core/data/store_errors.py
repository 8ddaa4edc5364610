"""What a store raises, and what each of these errors means to a caller."""


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
