"""The models that a model server lists."""

import logging
import time

import openai

from session_core.data.text import utf8_text
from session_core.model.cancellation import Cancellation
from session_core.model.client import ModelClient
from session_core.model.connection import http_library

log = logging.getLogger(__name__)

_LIST_SECONDS, _LISTED_SECONDS = 5.0, 60.0  # to wait for a list; for which it is kept


class ModelList:
    """The list of one model server. Safe for any number of threads."""

    def __init__(self, client: ModelClient) -> None:
        self._client = client
        self._listed: tuple[float, list[str]] = (-_LISTED_SECONDS, [])  # when, and the names

    def names(self) -> list[str]:
        """The names, as they were a minute ago at most. None where the server lists none."""
        listed_at, names = self._listed
        if time.monotonic() >= listed_at + _LISTED_SECONDS:
            names = self._ask()
            self._listed = time.monotonic(), names
        return names

    def _ask(self) -> list[str]:
        try:
            with self._client.connection(Cancellation()) as connection:
                listed = self._client.over(connection).models.list(timeout=_LIST_SECONDS)
                return [utf8_text(model.id) for model in listed.data]
        except (openai.OpenAIError, http_library.HTTPError, OSError, ValueError, AttributeError, TypeError) as error:
            log.warning("Model server: cannot list its models: %s", type(error).__name__)
            return []
