"""LangChain's model for OpenAI, with a loop of its own for the calls."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from lines import serve, weather
from pydantic import BaseModel


class City(BaseModel):
    """A city."""

    name: str


class Conversation:
    """A conversation."""

    def __init__(self, url: str, session: str | None, stream: bool) -> None:
        headers = {"X-Session-Id": session} if session else {}
        self._tool = tool(weather)
        self._tool.handle_tool_error = True
        self._model = ChatOpenAI(
            model="gpt-3.5-turbo", base_url=url, api_key="none", default_headers=headers, max_retries=1
        )
        self._stream = stream
        self._messages: list[BaseMessage] = []

    def ask(self, text: str, **options: Any) -> str:
        self._messages.append(HumanMessage(text))
        while True:
            found = self._complete(options)
            options = {}
            self._messages.append(found)
            if not found.tool_calls:
                return str(found.text)
            self._messages += [self._call(call) for call in found.tool_calls]

    def structured(self, text: str) -> str:
        """The name in an answer that keeps to a schema."""
        found = self._model.with_structured_output(City, method="json_schema").invoke(text)
        return str(found.name)

    def choose(self, text: str, model: str) -> str:
        return self.ask(text, model=model)

    def _complete(self, options: dict[str, Any]) -> AIMessage:
        model = self._model.bind_tools([self._tool], **options)
        if not self._stream:
            return model.invoke(self._messages)
        pieces = list(model.stream(self._messages))
        found = pieces[0]
        for piece in pieces[1:]:
            found += piece
        return found

    def _call(self, call: dict[str, Any]) -> ToolMessage:
        try:
            return ToolMessage(self._tool.invoke(call["args"]), tool_call_id=call["id"])
        except ValueError as error:
            return ToolMessage(f"Error: {error}", tool_call_id=call["id"], status="error")


serve(Conversation)
