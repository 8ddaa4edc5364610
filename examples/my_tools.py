"""Two tools for the model: python session_server.py -tools=examples/my_tools.py

A tool is a function with annotations and a docstring. Its name, its text and its types are what the model gets. It
runs with the server's rights, and what it gives goes to the model.
"""

import contextlib
import datetime
import sqlite3
import zoneinfo
from pathlib import Path

WORDS = Path(__file__).with_name("words.sqlite")


def time_in(zone: str = "") -> str:
    """The time now in a time zone, such as "Europe/Berlin"; the server's own zone where none is given."""
    try:
        return datetime.datetime.now(zoneinfo.ZoneInfo(zone) if zone else None).astimezone().isoformat(" ", "minutes")
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        raise ValueError(f"there is no time zone {zone}") from None


def look_up(word: str) -> dict[str, str]:
    """What a word means, by the small dictionary of this server."""
    with contextlib.closing(sqlite3.connect(f"{WORDS.as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute("select meaning from words where word = ?", (word.lower(),)).fetchall()
    if not rows:
        raise ValueError(f"the dictionary does not have {word}")
    return {"word": word, "meaning": rows[0][0]}
