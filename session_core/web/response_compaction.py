"""A conversation whose answers a summary of the model stands for, which the client keeps and sends back."""

import time
from collections.abc import Sequence
from typing import Any

from session_core.data.message import StoredMessage, message_text
from session_core.turns.event_log import Ended
from session_core.web.bodies import ModelName
from session_core.web.errors import ApiError
from session_core.web.response_ids import message_item_id
from session_core.web.response_listing import message_item
from session_core.web.response_object import render_usage
from session_core.web.response_request import ResponseBody
from session_core.web.sealed import seal
from storage import new_id

SUM_UP = (
    "Sum up the conversation so far, so that it can go on from the summary alone: what was asked for and decided, "
    "all facts, names and numbers, what was done, and what is open. Write the summary and nothing else."
)


class CompactBody(ResponseBody, strict=True):
    """What `POST /v1/responses/compact` takes."""

    model: ModelName

    @property
    def is_stored(self) -> bool:
        """A summary is the client's, whatever it says of `store`."""
        return False

    def check(self) -> None:
        """See ResponseBody.check."""
        if not self.input and self.previous_response_id is None:
            raise ApiError("invalid_request", "input or previous_response_id must be given.")


def render_compaction(messages: Sequence[StoredMessage], last: Ended) -> dict[str, Any]:
    """The questions as they are, and the summary, with which the conversation goes on."""
    session_id = new_id("session")
    asked = (message for message in messages if message["role"] == "user")
    output = [message_item(message_item_id("msg", session_id, one["id"]), "user", message_text(one)) for one in asked]
    output.append(
        {
            "id": message_item_id("cmp", session_id, last.message["id"]),
            "type": "compaction",
            "encrypted_content": seal({"summary": last.complete_text}),
        }
    )
    return {
        "id": message_item_id("resp", session_id, last.message["id"]),
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": output,
        "usage": render_usage(last.message.get("usage") or {"total_tokens": 0}),
    }
