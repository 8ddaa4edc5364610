"""pydantic-ai, which calls tools by itself."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any

from lines import serve, weather
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class City(BaseModel):
    """A city."""

    name: str


def weather_again(city: str) -> str:
    """The weather in a city."""
    try:
        return weather(city)
    except ValueError as error:
        raise ModelRetry(str(error)) from None


weather_again.__name__ = "weather"


async def _pass_over(_: Any, events: AsyncIterable[Any]) -> None:
    async for _event in events:
        pass


class Conversation:
    """A conversation."""

    def __init__(self, url: str, session: str | None, stream: bool) -> None:
        headers = {"X-Session-Id": session} if session else {}
        client = AsyncOpenAI(base_url=url, api_key="none", default_headers=headers, max_retries=1)
        self._model = OpenAIChatModel("gpt-3.5-turbo", provider=OpenAIProvider(openai_client=client))
        self._agent = Agent(self._model, tools=[weather_again])
        self._stream = stream
        self._messages: list[Any] = []

    def ask(self, text: str) -> str:
        handler = _pass_over if self._stream else None  # with which it asks the model for streams
        found = self._agent.run_sync(text, message_history=self._messages, event_stream_handler=handler)
        self._messages = list(found.all_messages())
        return str(found.output)

    def structured(self, text: str) -> str:
        """The name in an answer that keeps to a schema."""
        return str(Agent(self._model, output_type=NativeOutput(City)).run_sync(text).output.name)


serve(Conversation)
