"""A function as the model sees it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import pydantic

from model.text import json_object, utf8_text

MAX_RESULT_CHARACTERS = 1 << 20  # of one tool's result or error


class Tool:
    """A plain function that the model may call. `schema` is its description for the model server.

    Raises ValueError where the function cannot be a tool.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = getattr(function, "__name__", "")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.name) or inspect.iscoroutinefunction(function):
            raise ValueError(f"{function!r} cannot be a tool: it is no plain function with a name")
        target: Any = function  # TypeAdapter takes functions too, which its annotation does not say
        self._adapter = pydantic.TypeAdapter(target)
        parameters = self._adapter.json_schema()
        if parameters["type"] != "object":
            raise ValueError(f"{self.name} cannot be a tool: its arguments need names")
        description = inspect.getdoc(function) or ""
        self.schema = {
            "type": "function",
            "function": {"name": self.name, "description": description, "parameters": parameters},
        }

    def __call__(self, arguments: str) -> str:
        """Calls the function with a JSON object of arguments. Gives its result as text for the model.

        Raises ValueError, in words for the model, if the arguments do not fit, and whatever the function raises.
        """
        if json_object(arguments) is None:
            raise ValueError("the arguments are not a JSON object")
        try:
            result = self._adapter.validate_json(arguments)
        except pydantic.ValidationError as error:
            faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise ValueError("invalid arguments: " + "; ".join(faults)) from None
        text = utf8_text(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str))
        return text if len(text) <= MAX_RESULT_CHARACTERS else text[:MAX_RESULT_CHARACTERS] + " … (cut off)"
