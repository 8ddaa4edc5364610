"""What a running turn gives to its recorder, and what other processes get of it."""

from abc import ABC, abstractmethod
from typing import Protocol


class TurnLines(Protocol):
    """What a turn has said so far, as lines without line ends. Safe for any number of threads."""

    def events(self, after: int) -> tuple[list[bytes], bool]:
        """The events behind the first `after` ones, each on a line, and whether the last is the turn's last event."""

    def partial_text(self, after: int) -> tuple[list[bytes], int]:
        """What a partial answer can be made of, in fewer lines: what stands behind the first `after` events, and how
        many events there are."""

    @property
    def ended(self) -> bool:
        """Whether the turn's last event is there."""

    @property
    def size(self) -> int:
        """About how many bytes of memory the events take."""


class TurnFeed(ABC):
    """A turn that another process records. `read`, `interrupted` and `end` are for one thread.

    `id` is the same for the same turn. `substituted` says whether the lines of the last `read` are those of `end`.
    Every method raises StorageUnavailable; `read` and `interrupted` raise FeedGap too.
    """

    id: str
    substituted: bool = False

    @abstractmethod
    def read(self, seconds: float) -> list[bytes]:
        """The next lines, as soon as there are any. An empty list if none comes within `seconds`."""

    @abstractmethod
    def interrupted(self) -> bool:
        """Whether the process that ran the turn is gone and has published no last line. If so, that process can store
        nothing more in the session."""

    @abstractmethod
    def end(self, lines: list[bytes]) -> None:
        """Adds the last lines of an interrupted turn in place of its process, unless another process has, or there
        are lines that were not read yet. All readers then read the lines that were added."""

    @abstractmethod
    def tell_readers(self, reading: bool, kept: bool) -> bool:
        """Tells the process that runs the turn whether clients read it here, which holds for five seconds, and
        whether one of them wants it to run on, which holds for good. Returns whether the turn is being ended."""

    @abstractmethod
    def ask_to_end(self) -> None:
        """Asks the process that runs the turn to end it."""
