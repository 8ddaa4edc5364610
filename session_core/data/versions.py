"""Which of a session's messages are its conversation now, and which are versions that others stand in place of."""

from collections.abc import Sequence

from session_core.data.message import StoredMessage

BEGINNING = "beginning"  # what a message stands behind that begins the conversation anew


def find_parents(messages: Sequence[StoredMessage]) -> list[int]:
    """The index of the message behind which each one stands, -1 where it begins the conversation.

    A message stands behind the one before it in the list. With `after`, it stands behind the message of that id, and
    with `replaces` behind the one before the message of that id, of whatever version those are.
    """
    if not any("replaces" in message or "after" in message for message in messages):
        return list(range(-1, len(messages) - 1))
    places = {BEGINNING: -1}
    parents: list[int] = []
    for index, message in enumerate(messages):
        parent = index - 1
        replaced = places.get(message.get("replaces", BEGINNING), -1)
        if replaced >= 0 and message["role"] == "user":
            parent = parents[replaced]
        elif message.get("after") in places:
            parent = places[message["after"]]
        parents.append(parent)
        places[message["id"]] = index
    return parents


def find_path(parents: Sequence[int], index: int) -> list[int]:
    """The indexes of the messages that lead to this one, oldest first, and of itself."""
    path = []
    while index >= 0:
        path.append(index)
        index = parents[index]
    return path[::-1]


def replaced_messages(messages: Sequence[StoredMessage]) -> dict[str, str]:
    """The ids of the messages that are in the conversation no more, each with that of the one that replaced it."""
    parents = find_parents(messages)
    last_behind = list(range(len(messages)))  # of each message: the last one that stands behind it, on whatever way
    for index in range(len(messages) - 1, -1, -1):
        if (parent := parents[index]) >= 0:
            last_behind[parent] = max(last_behind[parent], last_behind[index])
    replacing = ((message, last + 1) for message, last in zip(messages, last_behind, strict=True))
    return {message["id"]: messages[index]["id"] for message, index in replacing if index < len(messages)}
