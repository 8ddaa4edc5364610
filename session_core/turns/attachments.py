"""The pictures and files of a turn: those of its question, kept before the question is, and those of its tools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from session_core.data.message import Content, ContentPart, MessageFields, file_parts, named_files
from session_core.data.session import expanded
from session_core.turns.turn_request import TurnRefused
from storage import Session, SessionNotFound, Storage


@dataclass(frozen=True)
class SessionFiles:
    """The pictures and files of one session, as the agent reads and adds them."""

    storage: Storage
    session_id: str

    def read(self, part: ContentPart) -> bytes | None:
        """The bytes that a part names, None where they are not there. Raises StorageUnavailable."""
        return self.storage.files.read(self.session_id, part["sha256"])

    def keep(self, files: Mapping[str, bytes]) -> None:
        """Keeps files under their SHA-256, durably, unless the session is gone. Raises StorageUnavailable."""
        self.storage.files.keep(self.session_id, files)
        try:
            self.storage.running(self.session_id)
        except SessionNotFound:  # it was deleted meanwhile, with the files that it had
            self.storage.files.remove(self.session_id)


def keep_new_files(
    storage: Storage, session: Session, files: dict[str, bytes], added: Sequence[MessageFields]
) -> None:
    """Keeps what messages name that are added, and the session has not, and makes their parts whole that name what
    the session has. Lets go of the bytes.

    Raises TurnRefused where a part names what is in neither, and StorageUnavailable.
    """
    messages = [one for message in added for one in (message, *message.get("history", ()))]
    named = named_files(messages)
    known = {  # histories are long, and most messages name nothing
        part["sha256"]: part
        for one in (expanded(session.messages) if named else ())
        for part in file_parts(one["content"])
    }
    if missing := [name for name in named if name not in known and name not in files]:
        raise TurnRefused(f"There is no picture or file {missing[0]} in this session: send its data.")
    whole = {part["sha256"]: part for one in messages for part in file_parts(one["content"]) if "media_type" in part}
    for message in messages:
        message["content"] = _with_whole_parts(message["content"], {**known, **whole})
    _keep_new(SessionFiles(storage, session.id), {name: files[name] for name in named & files.keys()}, known)
    files.clear()


def _keep_new(files: SessionFiles, sent: Mapping[str, bytes], known: Mapping[str, ContentPart]) -> None:
    """Keeps what the session does not name yet, and what it names whose bytes are gone."""
    if new := {name: sent[name] for name in sent if name not in known or files.read(known[name]) is None}:
        files.keep(new)


def _with_whole_parts(content: Content, whole: Mapping[str, ContentPart]) -> Content:
    if isinstance(content, str):
        return content
    return [part if "media_type" in part else whole.get(part.get("sha256", ""), part) for part in content]
