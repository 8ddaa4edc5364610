"""What the log looks like."""

from __future__ import annotations

import json
import logging
import time

from session_core.web.settings import Settings

# The rooms whose level -log_level sets. Logs of libraries may hold texts of messages, and start at warnings.
LOGGED_ROOMS = ("session_server", "session_core", "agent", "storage")


def set_up_logging(settings: Settings) -> None:
    """Writes the log to standard error, at this level and in this format."""
    handler = logging.StreamHandler()
    json_lines = settings.log_format == "json"
    handler.setFormatter(JsonLines() if json_lines else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of a queue while threads start on demand
    for name in LOGGED_ROOMS:
        logging.getLogger(name).setLevel(settings.log_level.upper())


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and `exception` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{when}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
