"""LiteLLM, with a loop of its own for the calls."""

from __future__ import annotations

from typing import Any

import litellm
from lines import FUNCTION, answer, serve

TOOLS = [{"type": "function", "function": FUNCTION}]


class Conversation:
    """A conversation."""

    def __init__(self, url: str, session: str | None, stream: bool) -> None:
        headers = {"X-Session-Id": session} if session else {}
        self._fixed = {"api_base": url, "api_key": "none", "extra_headers": headers, "tools": TOOLS, "num_retries": 0}
        self._stream = stream
        self._messages: list[Any] = []

    def ask(self, text: str, **options: Any) -> str:
        self._messages.append({"role": "user", "content": text})
        while True:
            found = self._complete(options)
            options = {}
            self._messages.append(found)
            if not found.tool_calls:
                return str(found.content)
            for call in found.tool_calls:
                result = answer(call.function.arguments)
                self._messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

    def choose(self, text: str, model: str) -> str:
        return self.ask(text, model=f"openai/{model}")

    def _complete(self, options: dict[str, Any]) -> Any:
        asked = {"model": "openai/gpt-3.5-turbo", "messages": self._messages, **self._fixed, **options}
        found = litellm.completion(stream=self._stream, **asked)
        whole = litellm.stream_chunk_builder(list(found), messages=self._messages) if self._stream else found
        return whole.choices[0].message


serve(Conversation)
