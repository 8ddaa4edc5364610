"""The queue of a session in Redis, which every server can change, whichever of them runs a turn."""

from session_core.data.message_queue import MessageQueue, QueuedMessage, QueueFull, parse_queue
from session_core.data.strict_json import to_json
from session_core.stores.redis_connection import RETRY_SECONDS, RedisKeys


class RedisQueue(MessageQueue):
    """The queue of a session under these keys."""

    def __init__(self, keys: RedisKeys, session_id: str) -> None:
        self._keys = keys
        self._session_id = session_id

    def read(self) -> list[QueuedMessage]:
        lines = self._keys.run("read the queue of", "queued", self._session_id)
        return parse_queue(self._session_id, b"[" + b",".join(lines) + b"]")

    def add(self, message: QueuedMessage, *, first: bool = False) -> int:
        line, id = to_json({"id": message["id"], **message}), message["id"]
        place = self._keys.run(
            "queue in", "queue", self._session_id, id, line, int(first), retry_seconds=RETRY_SECONDS
        )
        if place == b"full":
            raise QueueFull
        return int(place)

    def remove(self, message_id: str) -> bool:
        return bool(self._keys.run("change the queue of", "unqueue", self._session_id, message_id))
