"""Pictures and files as callers get them: one, so that nothing in it runs, or all with their conversation."""

import base64
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

from flask import Response, request, send_file

from session_core.data.file_kinds import PDF, PICTURES, detect_kind
from session_core.data.kept_files import KeptFiles
from session_core.data.message import SHA256, ContentPart, as_parts, file_parts
from session_core.data.strict_json import to_json
from session_core.web.errors import ApiError
from session_core.web.markdown import file_name
from storage import Session

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cache-Control": "private, max-age=31536000, immutable",
    "Vary": "Authorization",
}


def serve_file(files: KeptFiles, session_id: str, sha256: str) -> Response:
    """A picture or file of a session, with the media type that its bytes have. Text of any kind is plain text.

    Raises ApiError where the session has none of this name, and StorageUnavailable.
    """
    data = files.read(session_id, sha256) if SHA256.fullmatch(sha256) else None
    if data is None:
        raise ApiError("not_found", f"Session {session_id} has no such picture or file.")
    kind = detect_kind(data)
    content_type = kind if kind in (*PICTURES, PDF) else "text/plain; charset=utf-8"
    response = Response(data, content_type=content_type, headers=_HEADERS)
    if kind not in PICTURES:
        response.headers["Content-Disposition"] = "attachment"
    response.set_etag(sha256)
    response.make_conditional(request)
    return response


def export_json(answer: dict[str, Any], files: KeptFiles) -> Response:
    """A session as `GET /sessions/{id}` gives it, in which the parts for pictures and files have their data. Reads
    those of one message at a time."""
    messages = answer.pop("messages")

    def blocks() -> Iterator[bytes]:
        yield to_json({**answer, "messages": []})[:-2]
        for index, message in enumerate(messages):
            content = [_with_data(part, files, answer["id"]) for part in as_parts(message["content"])]
            whole = message if isinstance(message["content"], str) else {**message, "content": content}
            yield (b"," if index else b"") + to_json(whole)
        yield b"]}\n"

    return Response(blocks(), mimetype="application/json")


def export_zip(session: Session, document: str, files: KeptFiles) -> Response:
    """A Markdown document of the conversation, and beside it a folder with its pictures and files, as they are called
    there."""
    archive = tempfile.TemporaryFile()  # noqa: SIM115  the response closes it
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("conversation.md", document)
        parts = {file_name(part): part for one in session.conversation for part in file_parts(one["content"])}
        for name, part in parts.items():
            if (data := files.read(session.id, part["sha256"])) is not None:
                made.writestr(name, data)
    archive.seek(0)
    response = send_file(archive, "application/zip", as_attachment=True, download_name=f"{session.id}.zip")
    response.headers["Cache-Control"] = "no-store"
    return response


def _with_data(part: ContentPart, files: KeptFiles, session_id: str) -> Mapping[str, Any]:
    data = files.read(session_id, part["sha256"]) if "sha256" in part else None
    return part if data is None else {**part, "data": base64.b64encode(data).decode()}
