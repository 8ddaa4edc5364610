"""OpenAI's SDK for Python, from 1.2 on, with a loop of its own for the calls."""

from __future__ import annotations

from typing import Any

import openai
from lines import FUNCTION, answer, serve

TOOLS = [{"type": "function", "function": FUNCTION}]


class Conversation:
    """A conversation."""

    def __init__(self, url: str, session: str | None, stream: bool) -> None:
        headers = {"X-Session-Id": session} if session else {}
        self._client = openai.OpenAI(api_key="none", base_url=url, default_headers=headers, max_retries=1)
        self._stream = stream
        self._messages: list[Any] = []

    def ask(self, text: str, **options: Any) -> str:
        self._messages.append({"role": "user", "content": text})
        while True:
            found = self._complete({"tools": TOOLS, **options})
            self._messages.append(found)
            options.pop("tool_choice", None)
            if not found.get("tool_calls"):
                return str(found["content"])
            for call in found["tool_calls"]:
                result = answer(call["function"]["arguments"])
                self._messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})

    def leave(self, text: str) -> str:
        """Closes the stream at its first piece of text."""
        question: Any = {"role": "user", "content": text}
        stream = self._client.chat.completions.create(model="gpt-3.5-turbo", messages=[question], stream=True)
        piece = next(one for one in stream if one.choices[0].delta.content)
        stream.response.close()
        return str(piece.choices[0].delta.content)

    def choose(self, text: str, model: str) -> str:
        return self.ask(text, model=model)

    def probabilities(self, text: str) -> str:
        """The tokens of an answer for which probabilities came."""
        options = {"logprobs": True, "top_logprobs": 2, "stream": self._stream}
        question: Any = {"role": "user", "content": text}
        found = self._client.chat.completions.create(model="gpt-3.5-turbo", messages=[question], **options)
        choices = [one.choices[0] for one in found if one.choices] if self._stream else [found.choices[0]]
        return "".join(token.token for one in choices if one.logprobs for token in one.logprobs.content or ())

    def _complete(self, options: dict[str, Any]) -> dict[str, Any]:
        asked = {"model": "gpt-3.5-turbo", "messages": self._messages, **options}
        if not self._stream:
            whole = self._client.chat.completions.create(**asked)
            return dict(whole.choices[0].message.model_dump(exclude_none=True))
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        calls: dict[int, dict[str, Any]] = {}
        for chunk in self._client.chat.completions.create(stream=True, **asked):
            delta = chunk.choices[0].delta
            message["content"] += delta.content or ""
            for piece in delta.tool_calls or ():
                call = calls.setdefault(
                    piece.index, {"type": "function", "function": {"name": "", "arguments": ""}, "id": ""}
                )
                call["id"] += piece.id or ""
                call["function"]["name"] += piece.function.name or ""
                call["function"]["arguments"] += piece.function.arguments or ""
        return message | ({"tool_calls": list(calls.values())} if calls else {})


serve(Conversation)
