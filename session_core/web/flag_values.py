"""The texts of flags to their values."""

import re
import urllib.parse
from collections.abc import Callable
from typing import Any

from agent import FORBIDDEN_OPTIONS
from session_core.data.text import json_object


class SettingsError(ValueError):
    """A setting that cannot be used. The text names the setting and the remedy."""


# Each function below gives the value of a flag's text. Raises ValueError with the end of a sentence that begins with
# the flag's name.


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "t", "1", "false", "f", "0"):
        raise ValueError("must be true or false")
    return text.lower() in ("true", "t", "1")


def whole_number(least: int, most: int = 10**9) -> Callable[[str], int]:
    """Returns a function that reads a number from `least` to `most`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return read


def seconds(text: str) -> float:
    with_unit = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)s?", text)
    if not with_unit or not 0 < float(with_unit[1]) < 10**7:
        raise ValueError("must be a number of seconds above 0")
    return float(with_unit[1])


def duration(text: str) -> float:
    """Seconds, from a number with a unit or without one."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if not found:
        raise ValueError("must be a time such as 90s, 30m, 12h or 30d, or 0")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def seconds_or_zero(text: str) -> float:
    return 0.0 if text in ("0", "0s") else seconds(text)


def text_or_file(text: str) -> str:
    """The text, or what is in the file that `@file` names."""
    if not text.startswith("@"):
        return text
    try:
        with open(text[1:], encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {text[1:]}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None


def model_options(text: str) -> dict[str, Any]:
    options = json_object(text_or_file(text))
    if options is None:
        raise ValueError('must be a JSON object such as {"temperature":0.2}, or @file with one')
    if forbidden := [name for name in FORBIDDEN_OPTIONS if name in options]:
        raise ValueError(f"cannot set {forbidden[0]}, which the server sets itself: leave it out")
    return options


def url(text: str) -> str:
    try:
        parts = urllib.parse.urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port or of an IPv6 address
        valid = False
    if not valid:
        raise ValueError("must be a URL such as http://localhost:11434/v1")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise ValueError("must not end in /chat/completions, which the server adds itself: leave that out")
    return text


def redis_url(text: str) -> str:
    try:
        parts = urllib.parse.urlsplit(text)
        valid = parts.scheme == "unix" and bool(parts.path)
        if parts.scheme in ("redis", "rediss"):
            valid = bool((parts.hostname or "").encode("idna")) and bool(re.fullmatch("/?[0-9]*", parts.path))
        valid = valid and parts.port != 0
    except ValueError:  # of the port, of a host name or of an IPv6 address
        valid = False
    if not valid:
        raise ValueError("must be a URL such as redis://localhost:6379/0, rediss://… or unix:///run/redis.sock")
    return text


def without_secrets(address: str) -> str:
    """A URL without user, password and query, in any of which a key may stand."""
    parts = urllib.parse.urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def origins(text: str) -> tuple[str, ...]:
    """Web origins as browsers send them: in lower case, without the default port of the scheme."""
    found = tuple(origin.strip().lower() for origin in text.split(",") if origin.strip())
    for origin in found:
        if not re.fullmatch(r"https?://[^/?#\s*]+", origin):
            raise ValueError(f"{origin} is not a web origin such as https://chat.example.org")
    return tuple(origin.removesuffix(":443" if origin.startswith("https") else ":80") for origin in found)


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def token(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text.strip()):
        raise ValueError("must be visible ASCII characters without spaces")
    return text.strip()


def one_of(*words: str) -> Callable[[str], str]:
    """Returns a function that reads one of these words."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be {', '.join(words[:-1])} or {words[-1]}")
        return text

    return read
