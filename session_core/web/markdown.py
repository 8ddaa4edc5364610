"""A conversation as a Markdown document."""

import re
from collections.abc import Iterable, Mapping

from session_core.data.file_kinds import PDF, PICTURES
from session_core.data.message import ContentPart, StoredMessage, file_parts, message_text
from session_core.model.outgoing_messages import read_tool_calls

_ENDINGS = {kind: kind.partition("/")[2] for kind in (*PICTURES, PDF)}
_ROLES = {"user": "User", "assistant": "Assistant", "tool": "Tool result"}


def render_markdown(title: str | None, head: Mapping[str, str], messages: Iterable[StoredMessage]) -> str:
    """The document: a title, a line for each field of `head`, and a section for each message.

    Each text stands in a fenced block of its own, with a fence that is longer than any in the text (CommonMark 0.31,
    section 4.5). So nothing in a message can become a heading, a link, HTML, or another message. Links are those to
    pictures and files alone.
    """
    parts = [f"# {_plain(title or 'Conversation')}\n"]
    parts += [f"- {name}: {_plain(value)}" for name, value in head.items()]
    for message in messages:
        role, name = _ROLES.get(message["role"], "Message"), message.get("name")
        parts.append(f"\n## {role}{f' of {_plain(name)}' if name else ''}, {_plain(message['created_at'])}\n")
        if "status" in message:
            reason = message.get("reason", "for answers" if message["status"] == "waiting" else "")
            parts.append(f"Status: {_plain(message['status'])} ({_plain(reason)})\n")
        if message.get("reasoning"):
            parts.append(f"Reasoning:\n\n{_block(message['reasoning'], 'text')}\n")
        if text := message_text(message):
            parts.append(_block(text, "markdown" if role == "Assistant" else "text"))
        parts += [_link(part) for part in file_parts(message["content"])]
        parts += [
            f"\nTool call of {_plain(call.name)}:\n\n{_block(call.arguments, 'json')}"
            for call in read_tool_calls(message)
        ]
    return "\n".join(parts) + "\n"


def file_name(part: ContentPart) -> str:
    """Where a picture or a file stands beside the document: `files/<sha256>.png`."""
    return f"files/{part['sha256']}.{_ENDINGS.get(part['media_type'], 'txt')}"


def _link(part: ContentPart) -> str:
    name = _plain(part.get("name", part["type"]))
    return f"\n{'!' if part['type'] == 'image' else ''}[{name}]({file_name(part)})"


def _block(text: str, language: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _plain(text: str) -> str:
    """The text on one line, with nothing in it that Markdown reads as more than text."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(str(text).split()))
