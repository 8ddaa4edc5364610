"""Who may call: token, Host, Origin, CORS; and what every response carries."""

import hmac
import ipaddress
import logging
import re
import secrets
import time
import urllib.parse

from flask import Response, g, request

from session_core.web.errors import ApiError
from session_core.web.page_files import is_page_file
from session_core.web.settings import Settings
from session_core.web.users import Users

log = logging.getLogger(__name__)

_OPEN_PATHS = {"/ready", "/", "/openapi.json"}  # need no token, as the files of the page
_EXPOSED = {"Idempotency-Replayed", "Location", "Retry-After", "X-Request-Id"}  # beside the X- headers of a dialect


def check_access(settings: Settings, users: Users | None = None) -> Response | None:
    """Refuses callers that may not call, with ApiError. Answers CORS preflights. Runs before each endpoint.

    `g.user` is who calls, where there are users.
    """
    g.started_at = time.monotonic()
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if re.fullmatch(r"[\x21-\x7e]{1,128}", given) else f"req-{secrets.token_hex(8)}"
    if request.path == "/health":
        return None
    origin = request.headers.get("Origin")
    if origin is not None and origin not in settings.cors_origin and not _is_same_host(origin):
        raise ApiError("forbidden_origin")
    needs_token = bool(settings.auth_token or users)
    if not needs_token and not all(is_loopback(_split_host(host)[0]) for host in _hosts()):
        raise ApiError("forbidden_host")  # a page of another site may have this address by DNS rebinding
    if origin in settings.cors_origin and request.method == "OPTIONS":
        return Response(status=204)
    if needs_token and request.path not in _OPEN_PATHS and not is_page_file(request.path):
        g.user = _authenticate(settings, users)
    return None


def add_common_headers(response: Response, settings: Settings) -> Response:
    """Adds what every response carries. Logs a line when the response has been sent."""
    response.headers["X-Request-Id"] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    if g.get("user"):
        response.headers["X-User"] = g.user
    origin = request.headers.get("Origin")
    if settings.cors_origin:
        response.headers.add("Vary", "Origin")
    if origin in settings.cors_origin:
        response.headers["Access-Control-Allow-Origin"] = str(origin)
        exposed = _EXPOSED | {name for name, _ in response.headers if name.startswith("X-")}
        response.headers["Access-Control-Expose-Headers"] = ", ".join(sorted(exposed))
        if request.method == "OPTIONS":
            response.headers["Access-Control-Allow-Methods"] = "DELETE, GET, PATCH, POST"
            # The origin is one that may call, and SDKs and tracers send headers of their own.
            response.headers["Access-Control-Allow-Headers"] = request.headers.get(
                "Access-Control-Request-Headers", "Authorization, Content-Type"
            )
            response.headers["Access-Control-Max-Age"] = "600"
    method, path = urllib.parse.quote(request.method[:20]), urllib.parse.quote(request.path[:200])
    client = urllib.parse.quote((request.remote_addr or "-")[:60], safe=":")
    line = f"request {g.request_id} {client} {method} {path} {response.status_code}"
    started_at = g.started_at
    level = logging.DEBUG if request.path in ("/health", "/ready") else logging.INFO
    user = f" user={g.user}" if g.get("user") else ""
    response.call_on_close(lambda: log.log(level, "%s %.3f s%s", line, time.monotonic() - started_at, user))
    return response


def _authenticate(settings: Settings, users: Users | None) -> str:
    """The user whose token the request has, "" where there are no users. Raises ApiError."""
    scheme, _, token = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if users:
        user = users.find_user(token.strip())
    else:
        user = "" if hmac.compare_digest(token.strip().encode("latin-1"), settings.auth_token.encode()) else None
    if user is None or scheme.lower() != "bearer":
        raise ApiError("unauthorized", headers={"WWW-Authenticate": "Bearer"})
    return user


def is_loopback(host: str) -> bool:
    """Whether a host name or an address is this machine and no other."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hosts() -> tuple[str, str]:
    """The Host header as it came, and as a trusted proxy says that it was. Any page can send `X-Forwarded-Host`."""
    told = request.environ.get("HTTP_HOST", "")
    before: dict[str, str | None] = request.environ.get("werkzeug.proxy_fix.orig", {})
    return before.get("HTTP_HOST", told) or "", told


def _is_same_host(origin: str) -> bool:
    scheme, _, host_and_port = origin.partition("://")
    default_port = {"http": 80, "https": 443}.get(scheme)
    host, port = _split_host(host_and_port)
    asked_host, asked_port = _split_host(request.environ.get("HTTP_HOST", ""))
    return bool(host) and (host, port or default_port) == (asked_host, asked_port or default_port)


def _split_host(text: str) -> tuple[str, int | None]:
    """Host and port of a Host header (RFC 9110, section 7.2). The host is empty where the header is none."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(?::([0-9]{0,5}))?", text)
    if not found or int(found[2] or 0) > 65535 or (text.startswith("[") and ":" not in found[1]):
        return "", None
    return found[1].strip("[]").lower(), int(found[2]) if found[2] else None
