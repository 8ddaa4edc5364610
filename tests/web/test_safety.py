"""Who may come in, what pages of other origins may do, and what is never told."""

from __future__ import annotations

import hmac
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from session_core.stores.files import FileStorage
from session_core.web.page_files import PAGE_FILE_ROUTES
from tests.support.client import KEY, BreakableStorage, Client, error_of, json_of
from tests.support.model_server import ModelServer, answer, frames, status, tool_call
from tests.support.server import SERVER, TIMEOUT, Server, environment

TOKEN = "correct-horse-battery-staple"
PAGE = Path(__file__).parent.parent.parent / "session_core" / "web" / "page"
PAGE_FILES = sorted(file.name for file in PAGE.iterdir() if file.suffix in (".css", ".js", ".svg"))
OPEN = ["/health", "/ready", "/", "/openapi.json", *(f"/{name}" for name in PAGE_FILES)]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client() as client:
        yield client


@pytest.fixture(scope="module")
def guarded() -> Iterator[Client]:
    """An app that wants a token."""
    with Client(auth_token=TOKEN) as client:
        yield client


def routes(client: Client) -> list[tuple[str, str]]:
    """Every method and path that the app has, with the id of a session in it."""
    session_id = client.storage.create()
    return [
        (method, re.sub("<string[^>]*>", "resp_12345", path.replace("<session_id>", session_id)))
        for rule in client.app.url_map.iter_rules()
        for path in ([f"/{name}" for name in PAGE_FILES] if rule.rule in PAGE_FILE_ROUTES else [rule.rule])
        for method in sorted((rule.methods or set()) - {"OPTIONS"})
    ]


# --- the token ---


def test_with_a_token_everything_but_the_open_paths_needs_it(guarded: Client) -> None:
    seen = set()
    for method, path in routes(guarded):
        response = guarded.request(method, path)
        if path in OPEN:
            assert response.status_code == 200, path
        else:
            assert response.status_code == 401, path
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert method == "HEAD" or error_of(response) == (401, "unauthorized")
        seen.add(path)
    assert set(OPEN) <= seen


@pytest.mark.parametrize("path", ["/nothing", "/page.py", "/../", "/health/", "/./health", "/ready/.."])
def test_with_a_token_paths_that_are_not_there_need_it_too(guarded: Client, path: str) -> None:
    assert error_of(guarded.request("GET", "/x", environ_overrides={"PATH_INFO": path})) == (401, "unauthorized")


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER {TOKEN}"])
def test_the_right_token_opens(guarded: Client, given: str) -> None:
    assert guarded.get("/sessions", Authorization=given).status_code == 200


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Bearer x{TOKEN}",
     f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN} {TOKEN}", f"Bearer {TOKEN},", f'Bearer "{TOKEN}"', f"Bearer{TOKEN}",
     "Bearer é", "Bearer \xff\xfe", f"Token {TOKEN}", "Bearer " + "x" * 10_000],
)  # fmt: skip
def test_any_other_token_does_not(guarded: Client, given: str) -> None:
    response = guarded.request("GET", "/sessions", environ_overrides={"HTTP_AUTHORIZATION": given})
    assert error_of(response) == (401, "unauthorized")
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_a_token_counts_only_in_its_header(guarded: Client) -> None:
    path = f"/sessions?token={TOKEN}&auth_token={TOKEN}&access_token={TOKEN}"
    assert error_of(guarded.get(path, Cookie=f"token={TOKEN}", X_Auth_Token=TOKEN)) == (401, "unauthorized")


@pytest.mark.parametrize("given", [TOKEN, "x", TOKEN[:-1] + "x", TOKEN + "x"])
def test_tokens_are_compared_in_constant_time(guarded: Client, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []
    compare = hmac.compare_digest

    def recording(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", recording)
    response = guarded.get("/sessions", Authorization=f"Bearer {given}")
    assert compared == [(given.encode(), TOKEN.encode())]
    assert (response.status_code == 200) == (given == TOKEN)


def test_a_refused_request_does_nothing(guarded: Client) -> None:
    session_id = guarded.storage.create()
    sessions = guarded.storage.page()
    guarded.request("POST", f"/sessions/{session_id}/run", {"message": "Hi"})
    guarded.request("DELETE", f"/sessions/{session_id}")
    guarded.request("POST", "/sessions")
    assert guarded.model.requests == []
    assert guarded.storage.page() == sessions


def test_with_a_token_any_host_may_be_asked_for(guarded: Client) -> None:
    headers = {"Host": "chat.example.org", "Authorization": f"Bearer {TOKEN}"}
    assert guarded.request("GET", "/sessions", headers=headers).status_code == 200


# --- the host ---


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8080", "LocalHost:1", "127.0.0.1", "127.0.0.1:8080", "127.8.9.10:80", "[::1]",
     "[::1]:8080", "localhost:", "[0:0:0:0:0:0:0:1]:80"],
)  # fmt: skip
def test_loopback_hosts_pass(client: Client, host: str) -> None:
    assert client.request("GET", "/sessions", environ_overrides={"HTTP_HOST": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["", " ", "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example",
     "localhost@evil", "evil.example@localhost", "localhost, evil.example", "evil.example#localhost",
     "evil.example/localhost", "localhost/x", "localhost?x", "localhost#", "localhost\\evil", "localhost\tevil",
     "localhost evil", "\tlocalhost",
     "0.0.0.0", "0", "[::]", "10.0.0.1", "192.168.0.1:8080", "169.254.169.254", "2130706433", "0x7f000001",
     "127.0.0.1:99999", "127.0.0.1:x", "127.0.0.1:80:80", "127.0.0.1:-1", "::1", "[::1", "[localhost]", "[127.0.0.1]",
     "[::1]evil.example", "[::1].evil.example:80", "localhos\xff", "xn--localhost", "notlocalhost", "localhost.x",
     "*", "null", "example.org:localhost"],
)  # fmt: skip
def test_other_hosts_do_not_pass(client: Client, host: str) -> None:
    for path in ("/sessions", "/", "/ready", "/openapi.json", "/nothing"):
        response = client.request("GET", path, environ_overrides={"HTTP_HOST": host})
        assert error_of(response) == (403, "forbidden_host"), path


def test_a_request_without_a_host_does_not_pass(client: Client) -> None:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/sessions",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.0",
        "wsgi.url_scheme": "http",
    }
    answered: list[str] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        answered.append(status)
        return answered.append  # type: ignore[return-value]  # the way to write that nobody uses

    body = b"".join(client.app(environ, start_response))
    assert answered == ["403 FORBIDDEN"]
    assert b"forbidden_host" in body


@pytest.mark.parametrize("host", ["evil.example", "", "10.0.0.1"])
def test_health_answers_whatever_the_host_and_the_origin(client: Client, guarded: Client, host: str) -> None:
    for app in (client, guarded):
        environ = {"HTTP_HOST": host, "HTTP_ORIGIN": "https://evil.example"}
        response = app.request("GET", "/health", environ_overrides=environ)
        assert response.status_code == 200
        assert not cors_headers(response)


# --- the origin ---


def cors_headers(response: TestResponse) -> list[str]:
    return [name for name, _ in response.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8080", "http://localhost:8080"),
        ("localhost", "http://localhost"),
        ("localhost", "http://localhost:80"),
        ("localhost:80", "http://localhost"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("LOCALHOST:8080", "http://localhost:8080"),
        ("localhost", "https://localhost"),
        ("localhost:443", "https://localhost"),
    ],
)
def test_the_page_itself_may_call(client: Client, host: str, origin: str) -> None:
    headers = {"HTTP_HOST": host, "HTTP_ORIGIN": origin}
    response = client.request("POST", "/sessions", environ_overrides=headers)
    assert response.status_code == 201
    assert not cors_headers(response)


FOREIGN = [
    ("localhost:8080", "http://evil.example"),
    ("localhost:8080", "http://localhost:8081"),
    ("localhost:8080", "http://localhost"),
    ("localhost", "http://localhost:8080"),
    ("localhost:80", "https://localhost"),
    ("localhost:443", "http://localhost"),
    ("localhost:8080", "http://127.0.0.1:8080"),
    ("127.0.0.1:8080", "http://localhost:8080"),
    ("localhost:8080", "http://localhost:8080.evil.example"),
    ("localhost:8080", "http://localhost.evil.example:8080"),
    ("localhost:8080", "http://evil.example/localhost:8080"),
    ("localhost:8080", "null"),
    ("localhost:8080", ""),
    ("localhost:8080", "*"),
    ("localhost:8080", "file://"),
    ("localhost:8080", "http://"),
    ("localhost:8080", "http://localhost:x"),
    ("localhost:8080", "http://localhost:99999"),
    ("localhost:8080", "http://[::1"),
    ("localhost:8080", "chrome-extension://abcdefgh"),
    ("localhost:8080", "http://localhost:8080, http://evil.example"),
]


@pytest.mark.parametrize(("host", "origin"), FOREIGN)
def test_a_page_of_another_origin_may_not_call(client: Client, host: str, origin: str) -> None:
    sessions = client.storage.page()
    for method, path in (("GET", "/sessions"), ("POST", "/sessions"), ("OPTIONS", "/sessions"), ("GET", "/nothing")):
        headers = {"HTTP_HOST": host, "HTTP_ORIGIN": origin}
        response = client.request(method, path, environ_overrides=headers)
        assert error_of(response) == (403, "forbidden_origin")
        assert not cors_headers(response)
    assert client.storage.page() == sessions


def test_a_page_of_another_origin_may_not_call_with_the_token_either(guarded: Client) -> None:
    headers = {"Origin": "https://evil.example", "Authorization": f"Bearer {TOKEN}"}
    assert error_of(guarded.request("GET", "/sessions", headers=headers)) == (403, "forbidden_origin")


def test_without_an_origin_no_headers_for_origins_are_sent(client: Client) -> None:
    for method, path in routes(client):
        response = client.request(method, path, {} if method == "POST" else None)
        assert not cors_headers(response)


ORIGIN = "https://chat.example.org"
NAMED = {"Origin": ORIGIN}


@pytest.fixture(scope="module")
def named() -> Iterator[Client]:
    """An app that pages of two origins may call."""
    with Client(cors_origin=("http://localhost:3000", ORIGIN)) as client:
        yield client


def test_a_page_of_a_named_origin_may_call_and_read(named: Client) -> None:
    response = named.request("POST", "/sessions", {}, NAMED)
    assert response.status_code == 201
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "Origin" in response.headers["Vary"]


def test_a_page_of_a_named_origin_may_read_errors_and_streams(named: Client) -> None:
    missing = named.get("/sessions/session-x", Origin=ORIGIN)
    assert missing.status_code == 404
    stream = named.stream(named.create(), Origin=ORIGIN)
    stream.rest()
    for headers in (missing.headers, stream.headers):
        assert headers["Access-Control-Allow-Origin"] == ORIGIN
        exposed = {name.strip() for name in headers["Access-Control-Expose-Headers"].split(",")}
        assert {"Location", "Retry-After", "X-Request-Id", "Idempotency-Replayed"} <= exposed


@pytest.mark.parametrize(
    "origin",
    ["https://chat.example.org:8443", "http://chat.example.org", "https://chat.example.org.evil.example",
     "https://evil.example", "https://xchat.example.org", "https://CHAT.example.org.", "null", "http://localhost:3001"],
)  # fmt: skip
def test_other_origins_may_still_not_call(named: Client, origin: str) -> None:
    for method in ("GET", "OPTIONS"):
        response = named.request(method, "/sessions", headers={"Origin": origin})
        assert error_of(response) == (403, "forbidden_origin")
        assert "Access-Control-Allow-Origin" not in response.headers
        assert "Origin" in response.headers["Vary"]


HEADERS_OF_CLIENTS = {
    *("authorization", "content-type", "idempotency-key", "last-event-id", "x-request-id"),
    *("x-session-id", "x-stainless-lang", "x-stainless-retry-count", "traceparent", "tracestate"),
}


def test_a_preflight_of_a_named_origin_is_answered(named: Client) -> None:
    asked = {
        **NAMED,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": ", ".join(sorted(HEADERS_OF_CLIENTS)),
    }
    response = named.request("OPTIONS", "/sessions/session-x", headers=asked)
    assert response.status_code in (200, 204)
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    methods = {name.strip() for name in response.headers["Access-Control-Allow-Methods"].split(",")}
    assert {"GET", "POST", "PATCH", "DELETE"} <= methods
    allowed = {name.strip().lower() for name in response.headers["Access-Control-Allow-Headers"].split(",")}
    assert allowed >= HEADERS_OF_CLIENTS
    assert response.data == b""


def test_a_preflight_needs_no_token() -> None:
    with Client(cors_origin=(ORIGIN,), auth_token=TOKEN) as client:
        response = client.request("OPTIONS", "/sessions", headers={**NAMED, "Access-Control-Request-Method": "POST"})
        assert response.status_code in (200, 204)
        refused = client.request("POST", "/sessions", {}, NAMED)
        assert error_of(refused) == (401, "unauthorized")
        assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN


def test_credentials_of_pages_are_never_asked_for(named: Client) -> None:
    assert "Access-Control-Allow-Credentials" not in named.request("OPTIONS", "/sessions", headers=NAMED).headers


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_what_a_page_can_post_without_a_preflight_is_refused(client: Client, content_type: str) -> None:
    asked = len(client.model.requests)
    for method, path in routes(client):
        if method == "POST":
            response = client.request(method, path, b'{"message": "Hi"}', {"Content-Type": content_type})
            assert error_of(response) == (415, "unsupported_media_type")
    assert len(client.model.requests) == asked


# --- the address ---


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server("-demo", log=tmp_path_factory.mktemp("server") / "log") as server:
        yield server


def test_the_server_listens_on_loopback(server: Server) -> None:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    local = {row[1] for row in rows if row[1].endswith(f":{server.port:04X}") and row[3] == "0A"}
    assert local == {f"0100007F:{server.port:04X}"}


def test_another_address_needs_a_token() -> None:
    command = [*SERVER, "-demo", "-port=0", "-host=0.0.0.0"]
    ended = subprocess.run(command, env=environment(), capture_output=True, timeout=TIMEOUT)
    assert ended.returncode == 2
    assert ended.stdout == b""
    [line] = ended.stderr.decode().splitlines()
    assert "-auth_token" in line


# --- the page ---


@pytest.mark.parametrize("path", ["/", "/openapi.json", *(f"/{name}" for name in PAGE_FILES)])
def test_the_page_has_a_strict_content_security_policy(client: Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    policy = dict(
        directive.strip().split(" ", 1)
        for directive in response.headers["Content-Security-Policy"].split(";")
        if directive.strip()
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert not re.search(r"unsafe|\*|https?:", " ".join(policy.values()))
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_loads_nothing_from_elsewhere(client: Client) -> None:
    elsewhere = r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//|@import|url\(\s*["']?(?:https?:)?//"""
    imported = r"""(?:from|import|import\(|fetch\(|new \w+\()\s*["'`](?:https?:)?//"""
    for path in ("/", *(f"/{name}" for name in PAGE_FILES)):
        assert not re.search(f"{elsewhere}|{imported}", client.get(path).text), path


def test_the_page_has_no_script_and_no_style_in_its_markup(client: Client) -> None:
    markup = client.get("/").text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+\s*=|\sstyle\s*=|javascript:", markup, re.IGNORECASE)


@pytest.mark.parametrize(
    "path",
    ["/__init__.py", "/index.html/..", "/..%2fsession_server.py", "/%2e%2e/setup.cfg", "/page.js/", "/page.js%00"],
)
def test_only_the_files_of_the_page_are_served(client: Client, path: str) -> None:
    assert error_of(client.get(path)) == (404, "not_found")


def test_answers_are_not_to_be_guessed_at(client: Client) -> None:
    stream = client.stream(client.create())
    stream.rest()
    for headers in (stream.headers, client.get("/sessions").headers, client.get("/nothing").headers):
        assert headers["X-Content-Type-Options"] == "nosniff"


# --- what is never told ---

WORDS = f"The key {KEY} is wrong, see /srv/models/secret.gguf on gpu-7.internal (Traceback)"
NEVER_TOLD = re.compile(rf"{KEY}|{KEY[3:20]}|/srv|gguf|internal\b(?!_error)|Traceback|is wrong|\.py\b")


@pytest.mark.parametrize(
    "reply",
    [
        *(status(code, {"error": {"message": WORDS, "code": WORDS, "type": WORDS}}) for code in (400, 401, 403, 404)),
        *(status(code, {"error": {"message": WORDS}}, {"Retry-After": "0"}) for code in (408, 429, 500, 503, 504)),
        status(422, {"detail": [{"msg": WORDS}]}),
        status(418, {"message": WORDS}),
        status(500, WORDS.encode(), {"Retry-After": "0"}),
        status(400, {"error": {"message": f"the context is too long: {WORDS}"}}),
        frames({"error": {"message": WORDS}}),
        answer("Hel", {"error": {"message": WORDS}}),
        answer("Hel", {"object": "error", "message": WORDS}),
        frames(f"{{broken {WORDS}"),
    ],
)
def test_the_model_servers_own_words_are_not_passed_on(reply: Any) -> None:
    with Client(default=reply) as client:
        session_id = client.create()
        assert not NEVER_TOLD.search(client.run(session_id).text)
        stream = client.stream(session_id)
        assert not NEVER_TOLD.search(str(stream.last()["data"]))
        assert not NEVER_TOLD.search(client.get(f"/sessions/{session_id}").text)


def test_an_address_that_does_not_answer_is_not_passed_on() -> None:
    with Client(base_url="http://127.0.0.1:9/secret/v1", timeout=0.3) as client:
        text = client.run(client.create()).text
        assert not re.search(r"127\.0\.0\.1|secret|:9\b", text)


def test_errors_of_the_store_tell_no_path(tmp_path: Path) -> None:
    directory = tmp_path / "the-secret-place"
    with Client(storage=FileStorage.open(str(directory))) as client:
        corrupt, other = client.create(), client.create()
        (directory / f"{corrupt}.json").write_bytes(b"{")
        texts = [client.get(f"/sessions/{corrupt}").text, client.run(corrupt).text]
        shutil.rmtree(directory)
        texts += [client.run(other).text, client.get("/ready").text, client.request("POST", "/sessions").text]
        for text in texts:
            assert '"code"' in text
            assert not re.search(r"secret-place|/tmp|json\b|Errno|No such file", text)


def test_a_store_that_fails_in_mid_turn_tells_no_path() -> None:
    storage = BreakableStorage()

    def fill(request: dict[str, Any]) -> Any:
        storage.broken = True
        return answer("Hello")(request)

    with Client(fill, storage=storage) as client:
        stream = client.stream(client.create())
        data = stream.last()["data"]
        assert data["code"] == "storage_unavailable"
        assert "/srv" not in str(data)


def test_a_tool_with_a_bug_tells_the_model_no_more_than_its_kind() -> None:
    def buggy() -> str:
        """Has a bug."""
        raise RuntimeError(f"cannot open /srv/secret with {KEY}")

    with Client(tool_call("buggy", {}), tools=[buggy]) as client:
        session_id = client.create()
        assert client.run(session_id).status_code == 200
        assert not NEVER_TOLD.search(client.get(f"/sessions/{session_id}").text)
        assert not NEVER_TOLD.search(str(client.model.requests[-1]["messages"]))


def test_no_key_no_token_and_no_text_is_in_a_log(serve: Callable[..., Server], tmp_path: Path) -> None:
    asked, told, title, tool = "pelican-question", "heron-answer", "ibis-title", "stork"
    refused = {"error": {"message": f"bad {KEY}, Bearer {TOKEN}"}}
    replies = [
        tool_call("calculator", {"expression": f"{tool}+1"}),
        answer(told),
        status(401, refused),
        status(500, refused, {"Retry-After": "0"}),
        answer(told, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
        answer(told, b"data: {broken\n\n"),
        tool_call("calculator", f'{{"{tool}'),
        tool_call("unknown", {tool: tool}),
        answer(told),
    ]
    with ModelServer(*replies) as model:
        server = serve(
            f"-base_url={model.base_url}",
            f"-api_key={KEY}",
            f"-auth_token={TOKEN}",
            "-log_level=debug",
            f"-session_dir={tmp_path / 'sessions'}",
        )
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        session_id = server.request("POST", "/sessions", headers=bearer).json["id"]
        path = f"/sessions/{session_id}"
        for _ in range(5):
            server.request("POST", f"{path}/run_stream", {"message": asked}, bearer).text  # noqa: B018
        server.request("PATCH", path, {"title": title}, bearer).close()
        server.request("GET", path, headers=bearer).close()
        server.request("GET", "/sessions", headers={"Authorization": f"Bearer {TOKEN}x"}).close()
        server.request("POST", f"{path}/run", f'{{"message": "{asked}", '.encode(), bearer).close()
        server.send_signal(15)
        server.wait()
        log = server.log.read_text() + server.banner
        assert log.count(session_id) >= 8, "nothing was logged"
        for secret in (KEY, KEY[3:], TOKEN, asked, told, title, tool):
            assert secret not in log


def test_a_message_that_the_model_server_repeats_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("agent", "session_core", "session_server", "storage"):
        caplog.set_level("DEBUG", logger=name)
    text = "Where do the pelicans of the lake spend the winter?"
    refused = {"error": {"message": f"Invalid value for 'messages[1].content': '{text}' is not allowed"}}
    with Client(status(400, refused), status(400, refused)) as client:
        client.run(client.create(), text)
    assert "Model server" in caplog.text
    assert "pelicans" not in caplog.text


def test_answers_hold_no_word_of_the_server_program(server: Server) -> None:
    reply = server.request("GET", "/health")
    assert reply.json == {"status": "ok"}
    assert not re.search("waitress|werkzeug|python|flask", str(reply.headers), re.IGNORECASE)


def test_what_is_asked_for_in_json_is_answered_in_json(client: Client) -> None:
    for method, path in routes(client):
        response = client.request(method, path, b"\xff" if method in ("POST", "PATCH", "DELETE") else None)
        if path.startswith("/ui/") and response.status_code >= 400:
            error_of(response)  # which the AI SDK shows as it is
        elif path not in OPEN and method != "HEAD" and response.status_code != 204:
            json_of(response)
