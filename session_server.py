"""Chat sessions over HTTP.

`create_app` builds the Flask app from a storage, an agent and settings. `build_app` builds it from the environment,
for any WSGI server. `main` is the command line.
"""

from session_core.web.hangups import hold_hangups

if __name__ == "__main__":
    hold_hangups()  # before the imports below, which take most of a second

import atexit
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from agent import Agent
from calculator import calculator
from session_core.model.demo import ModelServer, demo_script
from session_core.stores.files import FileStorage
from session_core.telemetry.spans import Observer
from session_core.tools.files import ToolFileError, load_tools
from session_core.tools.functions import AnyTool, Tool
from session_core.turns.models import ModelChoice
from session_core.turns.recovery import continue_interrupted
from session_core.turns.sessions import Sessions, SessionsOfUsers
from session_core.turns.turns import Turns
from session_core.web.access import add_common_headers, check_access
from session_core.web.errors import answer_error
from session_core.web.flag_values import SettingsError, without_secrets
from session_core.web.hardened_waitress import MAX_BODY_BYTES
from session_core.web.logs import one_line, set_up_logging
from session_core.web.observing import add_metrics_route, load_metrics, load_traces, observe_requests
from session_core.web.openai_chat import openai_dialect
from session_core.web.openai_conversations import conversations_dialect
from session_core.web.openai_responses import responses_dialect
from session_core.web.service import service_routes
from session_core.web.serving import listen, serve, tune_interpreter
from session_core.web.sessions import native_dialect
from session_core.web.settings import Settings, read_settings
from session_core.web.turn_responses import TurnResponses
from session_core.web.ui_chat import ui_dialect
from session_core.web.users import Users
from storage import MemoryStorage, Storage, StorageUnavailable

__all__ = ["Settings", "SettingsError", "build_app", "create_app", "main"]


def create_app(
    storage: Storage,
    agent: Agent,
    settings: Settings | None = None,
    observer: Observer | None = None,
) -> Flask:
    """The Flask app over these objects. `app.extensions["turns"]` holds its turns, for its shutdown.

    The `observer` sees the requests and what they do.

    With `settings.users`, the storage makes one for each user (`Storage.for_user`). Raises SettingsError where the
    file of users cannot be read, and ValueError where the storage cannot keep users apart.
    """
    settings = settings or Settings()
    users = Users(settings.users) if settings.users else None
    if users and type(storage).for_user is Storage.for_user:
        raise ValueError("users need a store each: give a storage that has for_user")
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    if settings.trusted_proxies:
        n = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, n, n, n, 0, n)  # type: ignore[method-assign]
    app.url_map.merge_slashes = False  # a path with two slashes is not found, without a redirect in HTML
    observer = observer or Observer()
    metrics = load_metrics(observer) if settings.metrics else None
    observe_requests(app, metrics or observer)
    app.before_request(lambda: check_access(settings, users))
    app.after_request(lambda response: add_common_headers(response, settings))
    app.register_error_handler(Exception, answer_error)

    turns = Turns(
        ModelChoice(agent, None if "*" in settings.models else settings.models),
        timeout=settings.timeout,
        max_turns=settings.max_streams,
        observer=metrics or observer,
    )
    sessions = SessionsOfUsers(storage, turns, lambda: users.names if users else [""], settings.session_ttl)
    sessions.sweeps.start()
    responses = TurnResponses(sessions, Sessions(MemoryStorage(), turns), settings)
    app.extensions.update(turns=sessions, turn_responses=responses, users=users)
    app.register_blueprint(service_routes(agent, sessions, responses))
    app.register_blueprint(native_dialect(responses, show_reasoning=settings.show_reasoning))
    app.register_blueprint(ui_dialect(responses, show_reasoning=settings.show_reasoning))
    app.register_blueprint(openai_dialect(responses, agent, settings.session_headers))
    app.register_blueprint(responses_dialect(responses, agent))
    app.register_blueprint(conversations_dialect(responses))
    if metrics:
        add_metrics_route(app, metrics)
    return app


def build_app() -> Flask:
    """The app as the environment sets it up, for any WSGI server: `gunicorn 'session_server:build_app()'`.

    Raises SettingsError. Memory storage needs a server of one process.
    """
    settings = read_settings([], os.environ)
    set_up_logging(settings)
    app = _assemble(settings, atexit.register)
    tune_interpreter()
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the server until a signal ends it. Returns the exit code: 0 after a shutdown, 2 where it cannot start."""
    hold_hangups()
    try:
        settings = read_settings(sys.argv[1:] if arguments is None else arguments, os.environ)
        set_up_logging(settings)
        with listen(settings) as listener, contextlib.ExitStack() as at_end:
            serve(_assemble(settings, at_end.callback), listener, settings, _banner(settings, listener))
    except SettingsError as error:
        print(f"session_server: {one_line(str(error))}", file=sys.stderr)
        return 2
    return 0


def _assemble(settings: Settings, at_end: Callable[[Callable[[], object]], object]) -> Flask:
    """The app. What must be closed at the end is given to `at_end`."""
    base_url = ModelServer(demo_script()).start().base_url if settings.demo else settings.base_url or None
    tools = _tools(settings)
    tool_sources = [_mcp_tools(settings, at_end)] if settings.mcp_config else []
    _refuse_same_names([*tools, *(tool for source in tool_sources for tool in source())])
    try:
        agent = Agent(
            api_key=settings.api_key or "none",
            base_url=base_url,
            model="demo" if settings.demo else settings.model,
            options=settings.model_options,
            stream=settings.stream,
            system_prompt=_system_prompt(settings),
            tools=tools,
            tool_sources=tool_sources,
            tool_timeout=settings.tool_timeout,
            max_history=settings.max_history,
            max_file_bytes=settings.max_file_bytes,
            compact_at=settings.compact_at,
            timeout=settings.timeout,
        )
    except ValueError as error:
        raise SettingsError(f"-base_url: {error}; see to the address and to the proxy settings") from None
    traces = load_traces(os.environ)
    if traces:
        at_end(traces.close)
    app = create_app(_storage(settings), agent, settings, traces)
    if settings.continue_interrupted:
        continue_interrupted(app.extensions["turns"].all, settings.timeout)
    return app


def _tools(settings: Settings) -> list[Tool]:
    try:
        tools = [Tool(calculator, "built in")] if settings.calculator else []
        for path in settings.tools:
            tools += load_tools(path)
    except ToolFileError as error:
        raise SettingsError(f"-tools: {error}") from None
    return tools


def _refuse_same_names(tools: Sequence[AnyTool]) -> None:
    names = [tool.name for tool in tools]
    if twice := [tool for tool in tools if names.count(tool.name) > 1]:
        where = " and ".join(tool.source for tool in twice)
        raise SettingsError(f"-tools: {twice[0].name} is a tool of {where}: rename one, or give -calculator=false")


def _mcp_tools(
    settings: Settings, at_end: Callable[[Callable[[], object]], object]
) -> Callable[[], Sequence[AnyTool]]:
    """Starts the MCP servers. Returns a function that gives their tools."""
    try:
        from session_core.tools.mcp import McpServers
        from session_core.tools.mcp_config import McpError, read_mcp_config
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("mcp", "mcp_types", "anyio", "httpx2"):
            raise
        raise SettingsError("-mcp_config needs the MCP SDK: pip install '.[mcp]'") from None
    for name in ("mcp", "client"):  # the SDK's logs, which quote messages
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        servers = McpServers(read_mcp_config(settings.mcp_config, os.environ))
        servers.start()
    except McpError as error:
        raise SettingsError(f"-mcp_config: {error}") from None
    at_end(servers.close)
    return servers.tools


def _system_prompt(settings: Settings) -> str:
    """The instructions. The default ones do not name a calculator that is not there."""
    default = settings.system_prompt == Settings.system_prompt
    return "You are a helpful assistant." if default and not settings.calculator else settings.system_prompt


def _storage(settings: Settings) -> Storage:
    if settings.redis_url:
        try:
            from session_core.stores.redis import RedisStorage
        except ImportError as error:
            if (error.name or "").partition(".")[0] != "redis":
                raise
            raise SettingsError("-redis_url needs the redis client: pip install redis") from None
        try:
            return RedisStorage(settings.redis_url)
        except StorageUnavailable as error:
            raise SettingsError(f"-redis_url: {error}; see to the address, the password and the server") from None
    try:
        return FileStorage.open(settings.session_dir) if settings.session_dir else MemoryStorage()
    except StorageUnavailable as error:
        raise SettingsError(f"-session_dir: {error}; give a directory that can be written") from None


def _banner(settings: Settings, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    model = (
        "the built-in demo model"
        if settings.demo
        else f"{settings.model} at {without_secrets(settings.base_url) or 'OpenAI'}"
    )
    token = ' -H "Authorization: Bearer $SESSION_SERVER_TOKEN"' if settings.auth_token or settings.users else ""
    return (
        f"session_server listens on http://{host}:{port}\n"
        f"model:    {model}\n"
        f"sessions: {_store_name(settings)}\n"
        f"try:      curl -X POST{token} http://{host}:{port}/sessions"
    )


def _store_name(settings: Settings) -> str:
    """Where sessions are kept."""
    if settings.redis_url:
        return without_secrets(settings.redis_url)
    return os.path.abspath(settings.session_dir) if settings.session_dir else "in memory"


if __name__ == "__main__":
    sys.exit(main())
