"""A function as the model sees it."""

import abc
import asyncio
import contextlib
import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NewType

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


@dataclass(eq=False)
class AnyTool(abc.ABC):
    """What the agent and `GET /tools` need of a tool, wherever it comes from.

    `source` says where that is, for people. `may_need_approval` says whether a person must agree to calls, or to some
    of them, before they run.
    """

    name: str
    source: str
    description: str
    parameters: dict[str, Any]
    may_need_approval: bool

    @property
    def schema(self) -> dict[str, Any]:
        """Its description for the model server."""
        return tool_schema(self.name, self.description, self.parameters)

    def needs_approval(self, arguments: str) -> bool:
        """Whether a person must agree to a call with this JSON object of arguments. Never raises."""
        return self.may_need_approval

    @abc.abstractmethod
    def __call__(
        self, arguments: str, call_id: str = "", cancellation: Cancellation | None = None
    ) -> str | ToolOutput:
        """Calls the tool with a JSON object of arguments. Returns its result as text for the model, or with pictures.

        A call that can be interrupted hears of that by `cancellation`. Raises ValueError in words for the model.
        """


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


class Tool(AnyTool):
    """A function that the model may call, plain or `async`.

    The function's attribute `needs_approval` says which calls need approval, see `tool`. Raises ValueError where the
    function cannot be a tool.
    """

    def __init__(self, function: Callable[..., Any], source: str = "embedded") -> None:
        name = getattr(function, "__name__", "")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise ValueError(f"{function!r} cannot be a tool: it has no name of letters, digits, _ and -")
        rule = getattr(function, "needs_approval", False)
        if not isinstance(rule, bool) and (not callable(rule) or inspect.iscoroutinefunction(rule)):
            raise ValueError(f"{name} cannot be a tool: its needs_approval is neither true nor a plain function")
        self._function, self._rule = function, rule
        try:
            self._arguments, self._id_parameter = _arguments_of(function)
            parameters = self._arguments.json_schema()
        except (pydantic.errors.PydanticUserError, NameError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{name} cannot be a tool: {reason}; change the annotation") from error
        if parameters["type"] != "object":
            raise ValueError(f"{name} cannot be a tool: its arguments need names")
        super().__init__(name, source, inspect.getdoc(function) or "", parameters, bool(rule))

    def needs_approval(self, arguments: str) -> bool:
        """Whether a person must agree to a call with these arguments, which the function gets as the tool does.

        So it is where nothing can be said, such as for arguments that do not fit.
        """
        if isinstance(self._rule, bool):
            return self._rule
        try:
            given = read_arguments(arguments)
            checked = self._arguments.validate_json(pydantic_core.to_json(given))
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
        try:
            checked = self._arguments.validate_json(pydantic_core.to_json(given))
        except pydantic.ValidationError as error:
            faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise ValueError("invalid arguments: " + "; ".join(faults)) from None
        if self._id_parameter:
            checked[self._id_parameter] = CallId(call_id)
        result = self._function(**checked)
        if inspect.iscoroutinefunction(self._function):
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


def _arguments_of(function: Callable[..., Any]) -> tuple[pydantic.TypeAdapter[Any], str | None]:
    """What checks the arguments of a function and gives them by name, without the parameter of type CallId, and the
    name of that."""
    hints = typing.get_type_hints(function, include_extras=True)
    id_parameter = next((name for name, hint in hints.items() if hint is CallId and name != "return"), None)
    signature = inspect.signature(function)
    told = [parameter for name, parameter in signature.parameters.items() if name != id_parameter]

    def arguments(**given: Any) -> dict[str, Any]:
        return given

    arguments.__signature__ = signature.replace(parameters=told)  # type: ignore[attr-defined]  # for pydantic
    arguments.__annotations__ = hints
    return pydantic.TypeAdapter(arguments), id_parameter  # type: ignore[arg-type]


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
