"""What the programs share: commands as lines of JSON on standard input, and an outcome for each on standard output.

    {"do": "open", "url": …, "session": … or null, "stream": …}    a new conversation
    {"do": "ask", "text": …}                    a question and its whole answer, the calls of tools included
    {"do": …, …}                                whatever else the client can do, by the name of its method

An outcome has `text`, `called` (the arguments with which the client's own tool was called since the last outcome), or
`error` with the name of the exception's class, `status` where it has one, and its words.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

called: list[str] = []
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather in a city.", "parameters": SCHEMA}


def weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: its name
    """
    called.append(city)
    if city == "Atlantis":
        raise ValueError("there is no such city")
    return f"rain in {city}"


def answer(arguments: str) -> str:
    """What the tool gives for a call, as programs have it that call tools themselves."""
    try:
        return weather(**json.loads(arguments))
    except ValueError as error:
        return f"Error: {error}"


def serve(client: type) -> None:
    """Obeys the commands, each in the conversation that was opened last, until there are no more."""
    told, sys.stdout = sys.stdout, sys.stderr  # clients print
    conversation: Any = None
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        kind = command.pop("do")
        outcome: dict[str, Any] = {}
        try:
            if kind == "open":
                conversation = client(**command)
            else:
                outcome = {"text": getattr(conversation, kind)(**command)}
        except Exception as error:  # noqa: BLE001 - it is told
            traceback.print_exc()
            outcome = {"error": type(error).__name__, "status": find_status(error), "words": str(error)}
        print(json.dumps({**outcome, "called": called}), file=told, flush=True)
        called.clear()


def find_status(error: BaseException | None) -> int | None:
    """The HTTP status that an exception, or one that it came from, has."""
    while error is not None:
        for name in ("status_code", "http_status"):
            if isinstance(status := getattr(error, name, None), int):
                return status
        error = error.__cause__ or error.__context__
    return None
