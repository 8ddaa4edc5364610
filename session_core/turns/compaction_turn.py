"""A summary on request: a turn without a question, whose answer is the session's summary."""

from collections.abc import Sequence
from dataclasses import replace

from agent import Agent
from session_core.data.message import MessageFields, StoredMessage
from session_core.data.message_queue import MessageQueue
from session_core.data.removed import without_removed
from session_core.turns.attachments import SessionFiles
from session_core.turns.attempt import Attempt
from session_core.turns.compaction import before_last_turn, behind_summary, store, sum_up
from session_core.turns.event_log import Ended, Failed
from session_core.turns.local import LocalTurn
from session_core.turns.queued import check_order
from session_core.turns.stored import last_turn, outgoing_messages
from session_core.turns.turn_request import TurnRequest
from storage import LockedSession, Storage, timestamp


def begin_compaction(storage: Storage, session: LockedSession, request: TurnRequest, default_model: str) -> Attempt:
    """What the model is asked with. A last turn that did not complete may go on, and is not summed up.

    Raises SessionBusy where messages wait, StorageUnavailable and SessionCorrupt.
    """
    found = session.session
    check_order(storage.queue(session.id), found, request)
    turn = last_turn(found)
    outgoing = without_removed(outgoing_messages(found.messages, turn.attempt if turn else 1), found.responses)
    messages, summary = behind_summary(found, outgoing)
    return Attempt(
        "",
        1,
        {},
        settings={
            "model": found.model or default_model,
            "system_prompt": found.system_prompt,
            "client_tools": None,
            "files": SessionFiles(storage, session.id),
            "summary": summary,
        },
        history=list(messages if turn and turn.complete else before_last_turn(messages)),
    )


class CompactionTurn(LocalTurn):
    """A turn that sums up what is old. Its `message_id` is empty. The text of its end is that of the summary, empty
    where nothing was summed up."""

    def _run(self, agent: Agent, history: Sequence[StoredMessage], _: MessageQueue) -> None:
        settings = self._attempt.settings
        made = sum_up(agent, history, settings, self._cancellation, self.report, if_due=False)
        self._attempt = replace(self._attempt, settings={**settings, "compacted": made})
        self._end("completed", None)

    def _store(self, answer: MessageFields, finish_reason: str | None, failure: Failed | None) -> Ended | Failed:
        made = None if failure or "status" in answer else self._attempt.settings["compacted"]
        if made:
            store(self._recorder, made, self.report.usage)
        return failure or Ended(
            {**answer, "id": "", "created_at": timestamp()}, made["content"] if made else "", finish_reason
        )
