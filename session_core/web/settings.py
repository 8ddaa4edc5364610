"""Flags and environment to `Settings`."""

import argparse
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

from session_core.web.flag_values import (
    SettingsError,
    boolean,
    duration,
    model_options,
    names,
    one_of,
    origins,
    redis_url,
    seconds,
    seconds_or_zero,
    text_or_file,
    token,
    url,
    whole_number,
)


@dataclass(frozen=True)
class Settings:
    """What can be set, by flag or in the environment. Times are in seconds.

    `create_app` reads from here what is about HTTP and about turns, and takes the rest as objects.
    """

    port: int = 8080
    host: str = "127.0.0.1"
    api_key: str = ""
    base_url: str = ""
    model: str = "gpt-3.5-turbo"
    models: tuple[str, ...] = ()
    model_options: dict[str, Any] = field(default_factory=dict)
    stream: bool = True
    show_reasoning: bool = True
    session_dir: str = ""
    redis_url: str = ""
    session_ttl: float = 0.0
    tools: tuple[str, ...] = ()
    mcp_config: str = ""
    calculator: bool = True
    tool_timeout: float = 60.0
    system_prompt: str = "You are a helpful assistant. Use the calculator for arithmetic."
    timeout: float = 120.0
    keep_alive: float = 15.0
    max_history: int = 0
    compact_at: int = 0
    max_file_bytes: int = 10 << 20
    auth_token: str = ""
    users: str = ""
    session_headers: tuple[str, ...] = ("X-OpenWebUI-Chat-Id", "X-Conversation-Id")
    trusted_proxies: int = 0
    metrics: bool = False
    cors_origin: tuple[str, ...] = ()
    max_streams: int = 500
    grace: float = 10.0
    continue_interrupted: bool = False
    log_level: str = "info"
    log_format: str = "text"
    demo: bool = False

    @property
    def max_responses(self) -> int:
        """How many responses may wait for turns at once, slow readers of ended turns included."""
        return self.max_streams + 16

    @property
    def max_watchers(self) -> int:
        """How many clients may watch turns that others have started, all turns together."""
        return self.max_streams // 4 + 16


# flag: how its text is read, what it means, and other names in the environment
FLAGS: dict[str, tuple[Callable[[str], Any], str, tuple[str, ...]]] = {
    "port": (whole_number(0, 65535), "port to listen on; 0 picks a free one and prints it", ()),
    "host": (str, "address to listen on", ()),
    "api_key": (token, "API key of the model server", ("OPENAI_API_KEY",)),
    "base_url": (url, "address of any OpenAI-compatible server (default OpenAI's)", ("OPENAI_BASE_URL",)),
    "model": (str, "model name", ()),
    "models": (names, "further models that callers may choose, with commas; *: any", ()),
    "model_options": (
        model_options,
        'JSON object merged into every request, {"temperature":0.2}, or @file',
        (),
    ),
    "stream": (boolean, "ask the model for streams; false: for whole answers", ()),
    "show_reasoning": (boolean, "send the model's reasoning to callers; false: only store it", ()),
    "session_dir": (str, "directory for session files; empty: memory", ()),
    "redis_url": (redis_url, "Redis server to keep sessions in, which other servers may share", ()),
    "session_ttl": (duration, "sessions that did not change for so long are deleted: 90s, 12h, 30d; 0: never", ()),
    "tools": (names, "a Python file whose functions the model may call; repeatable", ()),
    "mcp_config": (str, 'a file of MCP servers whose tools the model may call: {"mcpServers": {...}}', ()),
    "calculator": (boolean, "offer the built-in calculator", ()),
    "tool_timeout": (seconds, "seconds that one tool call may take; then the turn goes on without it", ()),
    "system_prompt": (text_or_file, "instructions put before every conversation; @file reads a file", ()),
    "timeout": (seconds, "seconds that one turn may take, model and tools together", ()),
    "keep_alive": (seconds, "seconds of silence after which a stream sends a comment", ()),
    "max_history": (whole_number(0), "at most this many earlier messages go to the model; 0: all", ()),
    "compact_at": (whole_number(0), "from so many tokens in a request on, what is old is summed up; 0: never", ()),
    "max_file_bytes": (whole_number(1, 1 << 30), "the largest picture or file in a message, in bytes", ()),
    "auth_token": (token, "callers must send Authorization: Bearer <token>", ("SESSION_SERVER_TOKEN",)),
    "users": (str, "a file of users and their tokens, each with sessions of their own", ()),
    "session_headers": (
        names,
        "request headers in which a front end names a chat, with commas",
        (),
    ),
    "trusted_proxies": (whole_number(0, 16), "how many proxies in front are believed (X-Forwarded-…)", ()),
    "metrics": (boolean, "serve GET /metrics, for Prometheus", ()),
    "cors_origin": (origins, "a web origin that may call; repeatable", ()),
    "max_streams": (whole_number(1, 100_000), "turns running at once; more get 503", ()),
    "grace": (seconds_or_zero, "seconds that running turns get at shutdown", ()),
    "continue_interrupted": (boolean, "at the start, go on with turns that a crash has cut off", ()),
    "log_level": (one_of("debug", "info", "warning", "error"), "debug, info, warning, error", ()),
    "log_format": (one_of("text", "json"), "text, json", ()),
    "demo": (boolean, "built-in scripted model: no key and no network needed", ()),
}


_REPEATABLE = ("cors_origin", "models", "session_headers", "tools")


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings that flags, the environment and defaults give, in this order. Raises SettingsError."""
    parser = _Parser(allow_abbrev=False, add_help=False)
    parser.add_argument("--h", "--help", action="help")
    for name, (read, _, _) in FLAGS.items():
        nargs, const = ("?", "true") if read is boolean else (None, None)
        parser.add_argument(f"--{name}", action="append", nargs=nargs, const=const)
    given = vars(parser.parse_args([_normalized(argument) for argument in arguments]))

    values: dict[str, Any] = {}
    for name in ("demo", *FLAGS):
        if values.get("demo") and name in ("api_key", "base_url"):
            if given[name]:
                raise SettingsError(f"-demo has a model of its own: leave -{name} out, or -demo")
            continue
        source, text = _find_text(name, given[name], environment)
        if text is not None:
            try:
                values[name] = FLAGS[name][0](text)
            except ValueError as error:
                raise SettingsError(f"{source} {error}") from None
    return _checked(values)


def _find_text(name: str, given: list[str] | None, environment: Mapping[str, str]) -> tuple[str, str | None]:
    """Where the text of a setting comes from, and the text: from its flag, else from the environment."""
    if given:
        if "" in given and name != "session_dir":
            raise SettingsError(f"-{name} is empty: give it a value, or leave it out")
        return f"-{name}", ",".join(given) if name in _REPEATABLE else given[-1]
    variables = (f"SESSION_SERVER_{name.upper()}", *FLAGS[name][2])
    source = next((variable for variable in variables if environment.get(variable)), "")
    return source, environment.get(source)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} (-h lists the flags)")

    def format_help(self) -> str:
        lines = ["usage: python session_server.py [-flag=value ...]", ""]
        for setting in fields(Settings):
            name, default = setting.name, getattr(Settings, setting.name, "")
            hidden = isinstance(default, tuple) or default in ("", False) or name == "system_prompt"
            shown = "" if hidden else f" (default {default})"
            lines.append(f"  -{name:<14} {FLAGS[name][1]}{shown.lower().replace('.0)', ')')}")
        lines += [
            "",
            "Every flag can also be set in the environment, as SESSION_SERVER_ and its name in capitals.",
            "Examples:",
            "  python session_server.py -demo",
            "  python session_server.py -api_key=sk-... -session_dir=./sessions",
            "  python session_server.py -base_url=http://localhost:11434/v1 -model=llama3.2",
            "",
        ]
        return "\n".join(lines)


def _normalized(argument: str) -> str:
    """A flag in any of its spellings, as argparse knows it: `--name` or `--name=value`."""
    flag = re.fullmatch(r"--?([a-z][a-z_-]*)(=.*)?", argument, re.DOTALL)
    return f"--{flag[1].replace('-', '_')}{flag[2] or ''}" if flag else argument


def _checked(values: dict[str, Any]) -> Settings:
    """The settings, if they fit together and fit the system's limit of open files."""
    files = raise_open_file_limit()
    most = max(1, (files - 100) // 5)  # a turn takes four: client, model server, session file, journal
    values.setdefault("max_streams", min(Settings.max_streams, most))
    if values["max_streams"] > most:
        raise SettingsError(f"-max_streams={values['max_streams']} needs over {files} open files: raise ulimit -n")
    settings = Settings(**values)
    if settings.redis_url and settings.session_dir:
        raise SettingsError("-redis_url and -session_dir are two places for the same sessions: leave one out")
    if settings.users and settings.auth_token:
        raise SettingsError("-users has a token for each user: leave -auth_token out, or -users")
    server = urllib.parse.urlsplit(settings.base_url).hostname or "api.openai.com"
    if server == "api.openai.com" and not settings.demo and not settings.api_key:
        raise SettingsError("no API key: give -api_key=sk-..., set OPENAI_API_KEY, or try -demo without one")
    return settings


def raise_open_file_limit() -> int:
    """Raises the limit of open files as far as the system allows. Returns how many the process may have open."""
    try:
        import resource
    except ImportError:  # Windows
        return 2048
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):  # macOS says unlimited and means less
            return int(soft)
    return 1 << 20 if hard == resource.RLIM_INFINITY else int(hard)
