"""A function as the model sees it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
import threading
import typing
from collections.abc import Callable, Coroutine
from typing import Any, NewType, Protocol

import pydantic
import pydantic_core

from session_core.data.text import json_object, utf8_text
from session_core.model.cancellation import Cancellation

MAX_RESULT_CHARACTERS = 1 << 20  # of one tool's result or error

# A parameter of this type gets the id of the tool call. The model is not told of it. The id is the same when the same
# stored call runs again, so a tool can do its work once.
CallId = NewType("CallId", str)

_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL | re.IGNORECASE)


class AnyTool(Protocol):
    """What the agent and `GET /tools` need of a tool, wherever it comes from.

    A call gets a JSON object of arguments, and returns its result as text for the model. It raises ValueError in
    words for the model. A call that can be interrupted hears of that by `cancellation`.
    """

    name: str
    source: str
    description: str
    parameters: dict[str, Any]
    schema: dict[str, Any]

    def __call__(self, arguments: str, call_id: str = "", cancellation: Cancellation | None = None) -> str: ...


def tool_schema(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """A tool's description for the model server."""
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


class Tool:
    """A function that the model may call, plain or `async`. `schema` is its description for the model server.

    `source` says where it comes from, for people. Raises ValueError where the function cannot be a tool.
    """

    def __init__(self, function: Callable[..., Any], source: str = "embedded") -> None:
        self.name = getattr(function, "__name__", "")
        self.source = source
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.name):
            raise ValueError(f"{function!r} cannot be a tool: it has no name of letters, digits, _ and -")
        self._async = inspect.iscoroutinefunction(function)
        try:
            target, self._id_parameter = _without_call_id(function)
            self._adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(target)
            self.parameters: dict[str, Any] = self._adapter.json_schema()
        except (pydantic.errors.PydanticUserError, NameError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.name} cannot be a tool: {reason}; change the annotation") from error
        if self.parameters["type"] != "object":
            raise ValueError(f"{self.name} cannot be a tool: its arguments need names")
        self.description = inspect.getdoc(function) or ""
        self.schema = tool_schema(self.name, self.description, self.parameters)

    def __call__(self, arguments: str, call_id: str = "", cancellation: Cancellation | None = None) -> str:
        """Calls the function with a JSON object of arguments. Returns its result as text for the model.

        A function cannot be interrupted: it does not hear of `cancellation`. Raises ValueError, in words for the
        model, if the arguments do not fit, and whatever the function raises.
        """
        given = read_arguments(arguments)
        if self._id_parameter:
            _call_id.value = call_id
        try:
            result = self._adapter.validate_json(pydantic_core.to_json(given))
        except pydantic.ValidationError as error:
            faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise ValueError("invalid arguments: " + "; ".join(faults)) from None
        if self._async:
            result = asyncio.run(_awaited(result))
        return bounded(result_text(result))


def bounded(text: str) -> str:
    """A result, cut off where it is longer than a result may be."""
    return text if len(text) <= MAX_RESULT_CHARACTERS else text[:MAX_RESULT_CHARACTERS] + " … (cut off)"


def result_text(result: Any) -> str:
    """What a tool gives, as text for the model: a string as it is, all else as JSON.

    Dataclasses, pydantic models, dates and sets have the form that pydantic gives them. Bytes are text where they are
    UTF-8, else base64. NaN and infinity are null.
    """
    if isinstance(result, str):
        return utf8_text(result)
    try:
        data = pydantic_core.to_json(result, inf_nan_mode="null", serialize_unknown=True)
    except ValueError:  # bytes or strings that are no UTF-8
        data = pydantic_core.to_json(result, inf_nan_mode="null", serialize_unknown=True, bytes_mode="base64")
    return data.decode()


_call_id = threading.local()


def _without_call_id(function: Callable[..., Any]) -> tuple[Any, str | None]:
    """The function without its parameter of type CallId, and the name of that parameter."""
    hints = typing.get_type_hints(function, include_extras=True)
    name = next((name for name, hint in hints.items() if hint is CallId), None)
    if name is None or name == "return":
        return function, None

    @functools.wraps(function)
    def with_call_id(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs, **{name: CallId(_call_id.value)})

    signature = inspect.signature(function)
    rest = [parameter for key, parameter in signature.parameters.items() if key != name]
    with_call_id.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
    with_call_id.__annotations__ = {key: hint for key, hint in hints.items() if key != name}
    del with_call_id.__wrapped__  # pydantic would read its signature
    return with_call_id, name


def read_arguments(arguments: str) -> dict[str, Any]:
    """The arguments of a call. Raises ValueError, in words for the model, where they are no JSON object."""
    given = _nearly_right(arguments)
    if given is None:
        raise ValueError("the arguments are not a JSON object")
    return given


def _nearly_right(arguments: str) -> dict[str, Any] | None:
    """The arguments of a call, also where a model put its object into a JSON string or a Markdown fence, or sent
    nothing for no arguments."""
    text = arguments.strip()
    if not text:
        return {}
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1]
    if (found := json_object(text)) is not None:
        return found
    try:
        inner = pydantic_core.from_json(text)
    except ValueError:
        return None
    return json_object(inner) if isinstance(inner, str) else None


async def _awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await coroutine
