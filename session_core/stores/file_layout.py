"""What stands in a session's file, and what a crash can leave of it.

    {"id":"session-…","created_at":"…","messages":[
    {"id":"msg-…","role":"user","content":"What is 15 * 23?","created_at":"…"},
    {"id":"msg-…","role":"assistant","content":"15 * 23 is 345.","created_at":"…"}
    ],"updated_at":"…"}

A message is added by writing over the closing line and beyond. The parts of that write can reach the disk in any
order.
"""

import re
from typing import Any

from session_core.data.message import StoredMessage, is_message
from session_core.data.session import session_from
from session_core.data.strict_json import JSON_DECODER, from_json, to_json
from storage import CONFIGURABLE, STATE, Session

_SECTOR_BYTES = 512  # a disk writes whole sectors, so zeros in place of lost data end at a multiple of this
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def layout(session: Session) -> bytes:
    """The whole file."""
    lines = b",".join(b"\n" + to_json({"id": message["id"], **message}) for message in session.messages)
    return _head(session) + lines + closing(session)


def closing(session: Session) -> bytes:
    """The end of the file, from the line end behind the last message."""
    state = {name: value for name in STATE if (value := getattr(session, name)) not in (None, False)}
    return b"\n]," + to_json({"updated_at": session.updated_at, **state})[1:] + b"\n"


def parse(session_id: str, data: bytes) -> tuple[Session, int | None]:
    """The session in a file's content, in any layout, or in what a crash has left of the file.

    The second value is where the closing line begins, None where the file is not in this layout. Raises ValueError if
    the content is no session.
    """
    text = data.removeprefix(_BYTE_ORDER_MARK)
    try:
        value, whole = from_json(text), True
    except ValueError:
        value, whole = _untorn(text), False
    session = session_from(session_id, _without_outdated(value))
    end = closing(session)
    in_layout = (
        whole
        and data.startswith(_head(session))
        and data.endswith(end)
        and data.count(b'\n{"id":') == len(session.messages) == data.count(b"\n") - 2
    )
    return session, len(data) - len(end) if in_layout else None


def _head(session: Session) -> bytes:
    head: dict[str, Any] = {"id": session.id, "created_at": session.created_at}
    head |= {name: text for name in CONFIGURABLE if (text := getattr(session, name)) is not None}
    return to_json(head | session.extra)[:-1] + b',"messages":['


def _without_outdated(value: Any) -> Any:
    """The JSON object without what belongs behind the messages and stands in front of them, which an earlier version
    does that has changed the file since: it keeps there what it does not know."""
    names = list(value) if isinstance(value, dict) else []
    head = names[: names.index("messages")] if "messages" in names else []
    if "updated_at" in head:  # a layout of another hand
        return value
    return {name: value[name] for name in names if name not in STATE or name not in head} if names else value


def _untorn(data: bytes) -> dict[str, Any]:
    """The whole lines before a torn end, in this layout. Raises ValueError where more than the end is broken.

    A write begins at the closing line. Behind that place a crash can leave any mixture of the old closing line, the
    new message, the new closing line, and zeros: the blocks of one unsynced write reach the disk in any order. That
    is one message at most. An end that is broken in front of something else has zeros up to the end of a sector.
    """
    first, *lines = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    value: dict[str, Any] = from_json(first + b"]}")
    if not isinstance(value, dict) or value.get("messages") != []:
        raise ValueError("its first line is broken")
    lines = [line for line in lines if line]
    for number, line in enumerate(lines, 1):
        message, rest = _message(line)
        if message is not None:
            value["messages"].append(message)
        if message is None or rest not in ("", ","):
            after = lines[number:]
            torn = line.startswith(b"]") or not after or _has_torn_zeros(data)
            if any(_message(other)[0] for other in after) or not torn:
                raise ValueError("a line in its middle is broken")
            break
    return value


def _has_torn_zeros(data: bytes) -> bool:
    """Whether zeros stand up to the end of a sector."""
    ends = (zeros.end() for zeros in re.finditer(rb"\0+", data))
    return any(end % _SECTOR_BYTES == 0 or end == len(data) for end in ends)


def _message(line: bytes) -> tuple[StoredMessage | None, str]:
    """The message that a line begins with, None where there is none, and what follows it."""
    text = line.decode(errors="surrogateescape")
    try:
        message, end = JSON_DECODER.raw_decode(text)
        to_json(message)
    except ValueError:
        return None, text
    return (message, text[end:]) if is_message(message) else (None, text)
