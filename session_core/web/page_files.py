"""The files of the chat page, and the description of the API."""

from __future__ import annotations

import importlib.resources
import json

from flask import Response

_PAGE = importlib.resources.files("session_core.web") / "page"
_MEDIA_TYPES = {  # the system's own table can be wrong
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "json": "application/json",
    "svg": "image/svg+xml",
}

PAGE_FILES = sorted(file.name for file in _PAGE.iterdir() if file.name.endswith((".css", ".js", ".svg")))
# One route with all names, since each route takes most of a millisecond of a start.
PAGE_FILE_ROUTE = f"/<any({','.join(map(json.dumps, PAGE_FILES))}):name>"


def page_file(name: str) -> Response:
    """A file of the page, with a Content-Security-Policy under which it loads nothing from elsewhere."""
    response = Response((_PAGE / name).read_bytes(), mimetype=_MEDIA_TYPES[name.rpartition(".")[2]])
    response.headers["Cache-Control"] = "no-cache"
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return response
