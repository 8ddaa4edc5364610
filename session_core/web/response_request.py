"""What a client asks a response for: the body, its tools, and what of it goes to the model server."""

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, model_serializer

from session_core.data.text import as_object
from session_core.tools.client_tools import ClientTool, ClientTools
from session_core.web.bodies import ModelName
from session_core.web.errors import ApiError
from session_core.web.openai_tools import FunctionName
from session_core.web.response_items import CUSTOM_INPUT, qualified_name
from session_core.web.response_object import DEFAULTS

_MetadataKey = Annotated[str, StringConstraints(max_length=64)]
_MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[_MetadataKey, _MetadataValue], Field(max_length=16)]

SEALED_REASONING = "reasoning.encrypted_content"  # of `include`
_MAX_TOOL_NAME = 64  # characters, with its namespace
_SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "parallel_tool_calls")


class _Conversation(BaseModel, strict=True):
    id: str


class _Tool(BaseModel, strict=True):
    """A function of the client, a tool of its own that takes a text, or a namespace of such tools."""

    type: str
    name: FunctionName = ""
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: dict[str, Any] | None = None
    tools: "list[_Tool] | None" = None

    @property
    def functions(self) -> "dict[str, _Tool]":
        """The tools that it stands for, by the names under which they are offered."""
        if self.type != "namespace":
            return {self.name: self}
        return {qualified_name(self.name, tool.name): tool for tool in self.tools or ()}

    def offered(self, called: str) -> dict[str, Any]:
        """The tool as the model server gets it: one that takes a text is a function of one argument."""
        text = {"type": "object", "properties": {CUSTOM_INPUT: {"type": "string"}}, "required": [CUSTOM_INPUT]}
        parameters = text if self.type == "custom" else self.parameters
        function = {
            "name": called,
            "description": self._description,
            "parameters": parameters,
            "strict": self.strict,
        }
        return {
            "type": "function",
            "function": {name: value for name, value in function.items() if value is not None},
        }

    @property
    def _description(self) -> str | None:
        """With the grammar of its text, which is all that a model can be told of it."""
        grammar = (self.format or {}).get("definition")
        return (
            f"{self.description or ''}\n\nThe grammar of {CUSTOM_INPUT}:\n{grammar}" if grammar else self.description
        )

    @model_serializer
    def shown(self) -> dict[str, Any]:
        """The tool as the response shows it."""
        shown = {"type": self.type, "name": self.name, "description": self.description}
        if self.type == "namespace":
            return {**shown, "tools": [tool.shown() for tool in self.tools or ()]}
        if self.type == "custom":
            return {**shown, "format": self.format or {"type": "text"}}
        return {**shown, "parameters": self.parameters, "strict": self.strict}


class _Format(BaseModel, strict=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_serializer
    def shown(self) -> dict[str, Any]:
        """The format as the response shows it."""
        if self.type != "json_schema":
            return {"type": self.type}
        return {
            "type": self.type,
            "name": self.name,
            "description": self.description,
            "schema": self.schema_,
            "strict": bool(self.strict),
        }

    @property
    def response_format(self) -> dict[str, Any] | None:
        """The format as the model server gets it, None for text."""
        if self.type == "text":
            return None
        named = {name: value for name, value in self.shown().items() if value is not None and name != "type"}
        return {"type": self.type, **({"json_schema": named} if named else {})}


class _Text(BaseModel, strict=True):
    format: _Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    @model_serializer
    def shown(self) -> dict[str, Any]:
        """The form of the text as the response shows it."""
        format = self.format.shown() if self.format else DEFAULTS["text"]["format"]
        return {"format": format, **({"verbosity": self.verbosity} if self.verbosity else {})}


class _Reasoning(BaseModel, strict=True):
    effort: str | None = None
    summary: str | None = None


class ResponseBody(BaseModel, strict=True):
    """What `POST /v1/responses` takes."""

    input: str | list[Any] | None = None  # see `ResponseInput`
    model: ModelName | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | _Conversation | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    include: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: int | None = None
    max_output_tokens: Annotated[int, Field(ge=16)] | None = None
    max_tool_calls: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt: dict[str, Any] | None = None

    @property
    def is_stored(self) -> bool:
        """Whether it is a turn of a session."""
        return self.store is not False

    @property
    def conversation_id(self) -> str | None:
        """The conversation that it names."""
        return self.conversation.id if isinstance(self.conversation, _Conversation) else self.conversation

    @property
    def client_tools(self) -> ClientTools:
        """The tools of the client."""
        choice = as_object(self.tool_choice)
        named = choice.get("tools", [])
        if not isinstance(named, list) or not all(isinstance(tool, dict) for tool in named):
            raise ApiError("invalid_request", "tool_choice.tools must be a list of objects.")
        allowed = [tool.get("name") for tool in named] if "mode" in choice else None
        return ClientTools(
            {
                name: ClientTool(tool.offered(name))
                for name, tool in self._functions
                if allowed is None or name in allowed
            }
        )

    @property
    def _functions(self) -> list[tuple[str, _Tool]]:
        return [function for tool in self.tools or () for function in tool.functions.items()]

    def check(self) -> None:
        """Raises ApiError for what cannot be served."""
        faults = {
            "input must be given, and must not be empty.": not self.input,
            "previous_response_id and conversation are mutually exclusive: leave one out.": (
                self.conversation is not None and self.previous_response_id is not None
            ),
            "A response in the background must be stored: leave store out.": self.background and not self.is_stored,
            "prompt names a template at OpenAI, which is not served here.": self.prompt is not None,
        }
        if found := [text for text, is_there in faults.items() if is_there]:
            raise ApiError("invalid_request", found[0])
        for name, tool in self._functions:
            if tool.type not in ("function", "custom"):
                raise ApiError(
                    "invalid_request", f"{tool.type} is a hosted tool of OpenAI, which is not served here."
                )
            if not tool.name or len(name) > _MAX_TOOL_NAME:
                raise ApiError("invalid_request", f"A tool must have a name of at most {_MAX_TOOL_NAME} characters.")

    def options(self, *, any_tools: bool) -> dict[str, Any]:
        """What goes to the model server beside the conversation. Without `any_tools` it takes nothing of tools."""
        text = self.text or _Text()
        options = {
            **{name: getattr(self, name) for name in _SAMPLING},
            "max_completion_tokens": self.max_output_tokens,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "response_format": text.format.response_format if text.format else None,
            "verbosity": text.verbosity,
            "tool_choice": self._tool_choice,
        }
        left_out = () if any_tools else ("tool_choice", "parallel_tool_calls")
        return {name: value for name, value in options.items() if value is not None and name not in left_out}

    def record(self, model: str, **beside: Any) -> dict[str, Any]:
        """What is stored of it, see `session_core/web/response_object.py`."""
        shown = self.model_dump(include=set(DEFAULTS))
        shown |= {"service_tier": "default"} if self.service_tier == "auto" else {}
        own = {"conversation": self.conversation is not None, "sealed": SEALED_REASONING in (self.include or ())}
        kept = {name: value for name, value in {**own, **beside}.items() if value}
        kept |= {name: value for name, value in shown.items() if value not in (None, DEFAULTS[name])}
        return {"created_at": int(time.time()), "model": model, **kept}

    @property
    def _tool_choice(self) -> Any:
        """The choice as the model server gets it."""
        choice = self.tool_choice
        if not isinstance(choice, dict):
            return choice
        if choice.get("type") in ("function", "custom"):
            return {"type": "function", "function": {"name": choice.get("name")}}
        if choice.get("type") == "allowed_tools" and choice.get("mode") in ("auto", "required"):
            return choice["mode"]
        raise ApiError("invalid_request", f"tool_choice of the type {choice.get('type')} is not served here.")
