"""What the log looks like."""

import json
import logging
import re
import time
from typing import Any

from session_core.web.settings import Settings

# The rooms whose level -log_level sets. Logs of libraries may hold texts of messages, and start at warnings.
LOGGED_ROOMS = ("session_server", "session_core", "agent", "storage")

_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def set_up_logging(settings: Settings) -> None:
    """Writes the log to standard error, at this level and in this format."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if settings.log_format == "json" else PlainLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of a queue while threads start on demand
    for name in LOGGED_ROOMS:
        logging.getLogger(name).setLevel(settings.log_level.upper())


class PlainLines(logging.Formatter):
    """Time, level and message on one line, whatever the message quotes: line ends and other controls are escaped.

    The lines of a traceback (also as the record's `where`) follow it, indented, so that none can be taken for a line
    of the log.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))

    def formatException(self, *exception: Any) -> str:
        return _indented(super().formatException(*exception))

    def format(self, record: logging.LogRecord) -> str:
        where = _indented(getattr(record, "where", ""))
        return super().format(record) + (f"\n{where}" if where else "")


def _indented(lines: str) -> str:
    return "\n".join(f"  {one_line(line)}" for line in lines.rstrip("\n").split("\n") if line)


def one_line(text: str) -> str:
    """The text with each control character, and each that some reader takes for a line end, as an escape."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and `exception` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        elif where := getattr(record, "where", ""):
            line["exception"] = where
        return json.dumps(line)
