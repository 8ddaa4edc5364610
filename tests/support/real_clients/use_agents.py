"""OpenAI's Agents SDK over chat completions, which calls tools by itself."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from lines import serve, weather
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)


class City(BaseModel):
    """A city."""

    name: str


class Conversation:
    """A conversation."""

    def __init__(self, url: str, session: str | None, stream: bool) -> None:
        headers = {"X-Session-Id": session} if session else {}
        client = AsyncOpenAI(base_url=url, api_key="none", default_headers=headers, max_retries=1)
        self._model = OpenAIChatCompletionsModel("gpt-3.5-turbo", client)
        self._agent = Agent("asker", instructions="Be brief.", model=self._model, tools=[function_tool(weather)])
        self._stream = stream
        self._items: list[Any] = []
        self._loop = asyncio.new_event_loop()

    def ask(self, text: str) -> str:
        return self._loop.run_until_complete(self._ask(text))

    def structured(self, text: str) -> str:
        """The name in an answer that keeps to a schema."""
        agent = Agent("namer", model=self._model, output_type=City)
        return str(self._loop.run_until_complete(Runner.run(agent, text)).final_output.name)

    async def _ask(self, text: str) -> str:
        items = [*self._items, {"role": "user", "content": text}]
        if self._stream:
            found: Any = Runner.run_streamed(self._agent, items)
            async for _ in found.stream_events():
                pass
        else:
            found = await Runner.run(self._agent, items)
        self._items = found.to_input_list()
        return str(found.final_output)


serve(Conversation)
