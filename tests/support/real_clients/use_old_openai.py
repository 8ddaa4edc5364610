"""OpenAI's SDK for Python before 1.0, which knows functions where later ones have tools."""

from __future__ import annotations

from typing import Any

import openai
from lines import FUNCTION, answer, serve


class Conversation:
    """A conversation."""

    def __init__(self, url: str, session: str | None, stream: bool) -> None:
        self._fixed = {"api_key": "none", "api_base": url, "headers": {"X-Session-Id": session} if session else {}}
        self._stream = stream
        self._messages: list[Any] = []

    def ask(self, text: str, **options: Any) -> str:
        self._messages.append({"role": "user", "content": text})
        while True:
            found = self._complete({"functions": [FUNCTION], **options})
            self._messages.append(found)
            options.pop("function_call", None)
            call = found.get("function_call")
            if not call:
                return str(found["content"])
            result = answer(call["arguments"])
            self._messages.append({"role": "function", "name": call["name"], "content": result})

    def choose(self, text: str, model: str) -> str:
        return self.ask(text, model=model)

    def _complete(self, options: dict[str, Any]) -> dict[str, Any]:
        asked = {"model": "gpt-3.5-turbo", "messages": self._messages, **self._fixed, **options}
        if not self._stream:
            return dict(openai.ChatCompletion.create(**asked)["choices"][0]["message"])
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        for chunk in openai.ChatCompletion.create(stream=True, **asked):
            delta = chunk["choices"][0]["delta"]
            message["content"] += delta.get("content") or ""
            if piece := delta.get("function_call"):
                call = message.setdefault("function_call", {"name": "", "arguments": ""})
                call["name"] += piece.get("name") or ""
                call["arguments"] += piece.get("arguments") or ""
        return message


serve(Conversation)
