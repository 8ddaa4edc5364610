"""Pictures and files as callers get them: so that a browser shows a picture, saves all else, and runs nothing."""

from flask import Response, request

from session_core.data.file_kinds import PDF, PICTURES, detect_kind
from session_core.data.kept_files import KeptFiles
from session_core.data.message import SHA256
from session_core.web.errors import ApiError

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
