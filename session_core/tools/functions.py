"""A function as the model sees it."""

import asyncio
import contextlib
import functools
import inspect
import re
import threading
import typing
from collections.abc import Callable, Mapping
from typing import Any, NewType, Protocol

import pydantic
import pydantic_core

from session_core.data.text import json_object, utf8_text
from session_core.model.cancellation import Cancellation
from session_core.tools.pictures import ToolOutput, split_pictures

MAX_RESULT_CHARACTERS = 1 << 20  # of one tool's result or error

# A parameter of this type gets the id of the tool call. The model is not told of it. The id is the same when the same
# stored call runs again, so a tool can do its work once.
CallId = NewType("CallId", str)

_Function = typing.TypeVar("_Function", bound=Callable[..., Any])

_FENCE = "```"


class AnyTool(Protocol):
    """What the agent and `GET /tools` need of a tool, wherever it comes from.

    A call gets a JSON object of arguments, and returns its result as text for the model, or with pictures. It raises
    ValueError in words for the model. A call that can be interrupted hears of that by `cancellation`.

    `may_need_approval` says whether a person must agree to calls, or to some of them, before they run.
    """

    name: str
    source: str
    description: str
    parameters: dict[str, Any]
    schema: dict[str, Any]
    may_need_approval: bool

    def needs_approval(self, arguments: str) -> bool:
        """Whether a person must agree to a call with this JSON object of arguments. Never raises."""

    def __call__(
        self, arguments: str, call_id: str = "", cancellation: Cancellation | None = None
    ) -> str | ToolOutput: ...


def tool_schema(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """A tool's description for the model server."""
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def tool(*, needs_approval: bool | Callable[..., object]) -> Callable[[_Function], _Function]:
    """Marks a function as a tool whose calls run only when a person agrees to them.

    `needs_approval` is true, or a function that gets the arguments of a call as keywords, and returns whether this
    call needs approval. It does where the function raises.
    """

    def marked(function: _Function) -> _Function:
        function.needs_approval = needs_approval  # type: ignore[attr-defined]
        return function

    return marked


class Tool:
    """A function that the model may call, plain or `async`. `schema` is its description for the model server.

    `source` says where it comes from, for people. The function's attribute `needs_approval` says which calls need
    approval, see `tool`. Raises ValueError where the function cannot be a tool.
    """

    def __init__(self, function: Callable[..., Any], source: str = "embedded") -> None:
        self.name = getattr(function, "__name__", "")
        self.source = source
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.name):
            raise ValueError(f"{function!r} cannot be a tool: it has no name of letters, digits, _ and -")
        self._async = inspect.iscoroutinefunction(function)
        rule = getattr(function, "needs_approval", False)
        if not isinstance(rule, bool) and (not callable(rule) or inspect.iscoroutinefunction(rule)):
            raise ValueError(f"{self.name} cannot be a tool: its needs_approval is neither true nor a plain function")
        self.may_need_approval = bool(rule)
        try:
            target, self._id_parameter = _without_call_id(function)
            self._adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(target)
            self._checked = pydantic.TypeAdapter(_keywords_of(target)) if callable(rule) else None
            self._rule: Any = rule
            self.parameters: dict[str, Any] = self._adapter.json_schema()
        except (pydantic.errors.PydanticUserError, NameError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.name} cannot be a tool: {reason}; change the annotation") from error
        if self.parameters["type"] != "object":
            raise ValueError(f"{self.name} cannot be a tool: its arguments need names")
        self.description = inspect.getdoc(function) or ""
        self.schema = tool_schema(self.name, self.description, self.parameters)

    def needs_approval(self, arguments: str) -> bool:
        """Whether a person must agree to a call with these arguments, which the function gets as the tool does.

        So it is where nothing can be said, such as for arguments that do not fit.
        """
        if self._checked is None:
            return self.may_need_approval
        try:
            given = read_arguments(arguments)
            checked = self._checked.validate_json(pydantic_core.to_json(given))
            return bool(self._rule(**{name: value for name, value in checked.items() if name in given}))
        except Exception:  # noqa: BLE001  the function is anybody's code
            return True

    def __call__(
        self, arguments: str, call_id: str = "", cancellation: Cancellation | None = None
    ) -> str | ToolOutput:
        """Calls the function with a JSON object of arguments. Returns its result as text for the model, and its
        pictures.

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
            result = asyncio.run(result)
        text, pictures = split_pictures(result)
        text = bounded(result_text(text))
        return ToolOutput(text, [picture.data for picture in pictures]) if pictures else text


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

    signature = inspect.signature(function)
    rest = [parameter for key, parameter in signature.parameters.items() if key != name]
    with_call_id = _with_signature(
        lambda *args, **kwargs: function(*args, **kwargs, **{name: CallId(_call_id.value)}),
        function,
        signature.replace(parameters=rest),
        {key: hint for key, hint in hints.items() if key != name},
    )
    return with_call_id, name


def _keywords_of(target: Callable[..., Any]) -> Any:
    """A function that takes what `target` takes, and gives it by name."""
    signature = inspect.signature(target)
    further = [one.name for one in signature.parameters.values() if one.kind is one.VAR_KEYWORD]

    def keywords(*args: Any, **kwargs: Any) -> dict[str, Any]:
        given = signature.bind(*args, **kwargs).arguments
        return {name: value for name, value in given.items() if name not in further} | dict(
            *(given.get(name, {}) for name in further)
        )

    return _with_signature(keywords, target, signature, typing.get_type_hints(target, include_extras=True))


def _with_signature(
    function: Callable[..., Any], like: Callable[..., Any], signature: inspect.Signature, hints: Mapping[str, Any]
) -> Callable[..., Any]:
    """The function, which pydantic reads as if it had this signature."""
    functools.update_wrapper(function, like)
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__annotations__ = dict(hints)
    del function.__wrapped__  # type: ignore[attr-defined]  # pydantic would read its signature
    return function


def read_arguments(arguments: str) -> dict[str, Any]:
    """The arguments of a call, also where a model put its object into a JSON string or a Markdown fence, or sent
    nothing for no arguments. Raises ValueError, in words for the model, where they are no JSON object."""
    text = arguments.strip() or "{}"
    if text.startswith(_FENCE) and text.endswith(_FENCE):
        language, line_end, inside = text.removeprefix(_FENCE).removesuffix(_FENCE).partition("\n")
        if line_end and language.strip().lower() in ("", "json"):
            text = inside
    given = json_object(text)
    if given is None:
        with contextlib.suppress(ValueError):
            given = json_object(pydantic_core.from_json(text))
    if given is None:
        raise ValueError("the arguments are not a JSON object")
    return given
