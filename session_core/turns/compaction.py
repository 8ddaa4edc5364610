"""The summary of a session's older messages: what goes to the model behind it, and when a new one is made."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agent import Agent
from session_core.data.compacted import Compacted
from session_core.data.message import StoredMessage, begins_turn
from session_core.model.cancellation import Cancellation
from session_core.model.reply import sum_usage
from session_core.model.summarizing import SummedUp
from session_core.turns.report import TurnReport
from storage import LockedSession, Session, timestamp


def behind_summary(session: Session, messages: Sequence[StoredMessage]) -> tuple[list[StoredMessage], str]:
    """Those of these messages that the summary in force does not sum up, and its text. All, and an empty one, where
    there is none."""
    made = session.current_compacted
    if made is None:
        return list(messages), ""
    old = _summed_up(session, made)
    return [message for message in messages if message["id"] not in old], made["content"]


def without_summary_of(session: Session, ids: Collection[str]) -> Compacted | None:
    """The session's summary, out of force where it sums up one of the messages of these ids."""
    made = session.current_compacted
    return {**made, "until": ""} if made and not _summed_up(session, made).isdisjoint(ids) else session.compacted


def _summed_up(session: Session, made: Compacted) -> set[str]:
    ids = [message["id"] for message in session.conversation]
    return set(ids[: ids.index(made["until"]) + 1])


def before_last_turn(messages: Sequence[StoredMessage]) -> Sequence[StoredMessage]:
    """Those of these messages that stand before the last question."""
    questions = (at for at in reversed(range(len(messages))) if begins_turn(messages[at]))
    return messages[: next(questions, 0)]


def sum_up(
    agent: Agent,
    messages: Sequence[StoredMessage],
    settings: Mapping[str, Any],
    cancellation: Cancellation,
    report: TurnReport,
    *,
    if_due: bool,
) -> Compacted | None:
    """A summary of what is old in these messages, with the settings of `Agent.run`. None where nothing is old, or
    with `if_due` where none is due yet. Raises ModelError and Cancelled."""
    asked = {name: settings[name] for name in ("summary", "model", "system_prompt", "client_tools", "files")}
    last: SummedUp | None = None
    for event in agent.sum_up(messages, cancellation, if_due=if_due, observer=report.span, **asked):
        if isinstance(event, SummedUp):
            report.usage = sum_usage(report.usage, event.usage)
            last = event
    return {"until": last.until, "content": last.content, "created_at": timestamp()} if last else None


def store(session: LockedSession, made: Compacted, usage: dict[str, Any] | None = None) -> None:
    """Stores the summary, with the `usage` of it that no answer tells of. Raises StorageUnavailable."""
    before = session.session.compacted
    used = sum_usage(before.get("usage") if before else None, usage)
    session.configure(compacted={**made, "usage": used} if used else made)
