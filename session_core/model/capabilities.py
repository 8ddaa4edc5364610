"""What a model server takes and what it misses, learned from its refusals."""

from __future__ import annotations

import logging
import re
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Literal

from session_core.model.failures import Failure

log = logging.getLogger(__name__)

Part = Literal["usage", "provider_state", "tools"]  # of a request, that some servers refuse

_MISSES_REASONING = re.compile(
    r"(missing|required|must|need|lack|without).{0,100}reasoning_content"
    r"|reasoning_content.{0,100}(missing|required|must|need|lack)",
    re.IGNORECASE | re.DOTALL,
)
_MISSES_SIGNATURE = re.compile(r"thought_?signature", re.IGNORECASE)
_NAMES: dict[Part, re.Pattern[str]] = {
    "usage": re.compile(r"stream_options|include_usage", re.IGNORECASE),
    "provider_state": re.compile(r"reasoning|extra_content|thought|extra_forbidden|extra inputs", re.IGNORECASE),
    "tools": re.compile(r"\btools?\b|\btool[_ -]?(choice|use|call)|function[_ -]?call", re.IGNORECASE),
}
_TOOLS_UNSUPPORTED = re.compile(r"support|require|enable|jinja|available|allow|implement", re.IGNORECASE)
_REMEDY = "vLLM wants --enable-auto-tool-choice and --tool-call-parser, llama.cpp's server --jinja"


@dataclass(frozen=True)
class RequestForm:
    """How a request is built.

    `usage`, `provider_state` and `tools` are the parts that it has. With `reasoning_everywhere`, each assistant's
    message with tool calls has `reasoning_content`. `signatures` says what becomes of tool calls that another model
    made: 0 nothing, 1 they are signed as foreign, 2 they become text.
    """

    usage: bool = True
    provider_state: bool = True
    tools: bool = True
    reasoning_everywhere: bool = False
    signatures: int = 0


class Capabilities:
    """The shape that one model on one server takes, for the life of the process. Safe for any number of threads."""

    def __init__(self, shape: RequestForm) -> None:
        self.shape = shape
        self.accepted: frozenset[Part] = frozenset()

    def learn(self, shape: RequestForm, sent: Set[Part]) -> None:
        """Remembers the shape of a request that was answered. `sent` are the parts that it had."""
        if self.shape.tools and not shape.tools:
            log.warning("The model server refuses tools, so it is asked without them: %s", _REMEDY)
        self.accepted |= sent
        self.shape = shape


class Negotiation:
    """The shape of one request after the other, until one is taken or nothing is left to change."""

    def __init__(self, traits: Capabilities) -> None:
        self.shape = traits.shape
        self._accepted = traits.accepted
        self._tried: set[Part] = set()
        self._before: RequestForm | None = (
            None  # the shape that the last request had, where a part was dropped after it
        )
        self._words = ""

    def change(self, failure: Failure, sent: Set[Part]) -> bool:
        """Changes the shape after a refusal of a request that had the parts `sent`.

        Returns False where no other shape may help.
        """
        if self._before and failure.words == self._words:  # the same refusal: the part was not its cause
            self.shape = self._before
        self._before, self._words = None, failure.words
        if failure.status in (400, 422):
            if _MISSES_REASONING.search(failure.words) and not self.shape.reasoning_everywhere:
                self.shape = replace(self.shape, reasoning_everywhere=True, provider_state=True)
                return True
            if _MISSES_SIGNATURE.search(failure.words) and self.shape.signatures < 2:
                self.shape = replace(self.shape, signatures=self.shape.signatures + 1, provider_state=True)
                return True
        part = self._suspect(failure, sent)
        if part is None:
            return False
        self._tried.add(part)
        self._before = self.shape
        self.shape = replace(self.shape, **{part: False})
        if part == "provider_state":
            self.shape = replace(self.shape, reasoning_everywhere=False)
        return True

    def _suspect(self, failure: Failure, sent: Set[Part]) -> Part | None:
        """The part that the server most likely refuses: one that its words name, else one that it has never taken."""
        left = [part for part in _NAMES if part in sent and part not in self._tried]
        named = [part for part in left if _NAMES[part].search(failure.words)]
        if failure.status == 500:
            return "tools" if "tools" in named and _TOOLS_UNSUPPORTED.search(failure.words) else None
        if failure.status not in (400, 422) or failure.code != "model_error":
            return None
        unknown = [part for part in left if part not in self._accepted and part != "tools"]
        return next(iter([*named, *unknown]), None)
