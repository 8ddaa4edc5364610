"""What a model server takes and what it misses, learned from its refusals."""

from __future__ import annotations

import logging
import re
from collections.abc import Set
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from session_core.model.failures import Failure

log = logging.getLogger(__name__)

OptionalPart = Literal["usage", "provider_metadata", "tools"]  # of a request, that some servers refuse

_MISSES_REASONING = re.compile(
    r"(missing|required|must|need|lack|without).{0,100}reasoning_content"
    r"|reasoning_content.{0,100}(missing|required|must|need|lack)",
    re.IGNORECASE | re.DOTALL,
)
_MISSES_SIGNATURE = re.compile(r"thought_?signature", re.IGNORECASE)
_NAMES: dict[OptionalPart, re.Pattern[str]] = {
    "usage": re.compile(r"stream_options|include_usage", re.IGNORECASE),
    "provider_metadata": re.compile(r"reasoning|extra_content|thought|extra_forbidden|extra inputs", re.IGNORECASE),
    "tools": re.compile(r"\btools?\b|\btool[_ -]?(choice|use|call)|function[_ -]?call", re.IGNORECASE),
}
_TOOLS_UNSUPPORTED = re.compile(r"support|require|enable|jinja|available|allow|implement", re.IGNORECASE)
_REMEDY = "vLLM wants --enable-auto-tool-choice and --tool-call-parser, llama.cpp's server --jinja"


class ForeignCalls(Enum):
    """What becomes of tool calls that another model made."""

    UNSIGNED = 0
    SIGNED = 1
    TEXT = 2


@dataclass(frozen=True)
class RequestForm:
    """How a request is built.

    `usage`, `provider_metadata` and `tools` are the parts that it has. With `reasoning_everywhere`, each assistant's
    message with tool calls has `reasoning_content`.
    """

    usage: bool = True
    provider_metadata: bool = True
    tools: bool = True
    reasoning_everywhere: bool = False
    foreign_calls: ForeignCalls = ForeignCalls.UNSIGNED

    def without(self, part: OptionalPart) -> RequestForm:
        """This form without a part."""
        if part == "provider_metadata":
            return replace(self, provider_metadata=False, reasoning_everywhere=False)
        return replace(self, usage=False) if part == "usage" else replace(self, tools=False)


class Capabilities:
    """The form that one model on one server takes, for the life of the process. Safe for any number of threads."""

    def __init__(self, form: RequestForm) -> None:
        self.form = form
        self.accepted: frozenset[OptionalPart] = frozenset()

    def learn(self, form: RequestForm, sent: Set[OptionalPart]) -> None:
        """Remembers the form of a request that was answered. `sent` are the parts that it had."""
        if self.form.tools and not form.tools:
            log.warning("The model server refuses tools, so it is asked without them: %s", _REMEDY)
        self.accepted |= sent
        self.form = form


class Negotiation:
    """The form of one request after the other, until one is taken or nothing is left to change."""

    def __init__(self, capabilities: Capabilities) -> None:
        self.form = capabilities.form
        self.sent: set[OptionalPart] = set()  # in the last request
        self._capabilities = capabilities
        self._tried: set[OptionalPart] = set()
        self._before: RequestForm | None = None  # of the last request, where a part was dropped after it
        self._words = ""

    def accept(self) -> None:
        """Remembers that the last request was answered."""
        self._capabilities.learn(self.form, self.sent)

    def change(self, failure: Failure) -> bool:
        """Changes the form after the refusal of the last request. Returns False where no other form may help."""
        if self._before and failure.words == self._words:  # the same refusal: the part was not its cause
            self.form = self._before
        self._before, self._words = None, failure.words
        added = self._added(failure) if failure.status in (400, 422) else None
        if added:
            self.form = added
            return True
        part = self._suspect(failure)
        if part is None:
            return False
        self._tried.add(part)
        self._before = self.form
        self.form = self.form.without(part)
        return True

    def _added(self, failure: Failure) -> RequestForm | None:
        """The form with what the server misses, if its words say so."""
        form = replace(self.form, provider_metadata=True)
        if _MISSES_REASONING.search(failure.words) and not form.reasoning_everywhere:
            return replace(form, reasoning_everywhere=True)
        if _MISSES_SIGNATURE.search(failure.words) and form.foreign_calls is not ForeignCalls.TEXT:
            return replace(form, foreign_calls=ForeignCalls(form.foreign_calls.value + 1))
        return None

    def _suspect(self, failure: Failure) -> OptionalPart | None:
        """The part that the server most likely refuses: one that its words name, else one that it has never taken."""
        left = [part for part in _NAMES if part in self.sent and part not in self._tried]
        named = [part for part in left if _NAMES[part].search(failure.words)]
        if failure.status == 500:
            return "tools" if "tools" in named and _TOOLS_UNSUPPORTED.search(failure.words) else None
        if failure.status not in (400, 422) or failure.code != "model_error":
            return None
        unknown = [part for part in left if part not in self._capabilities.accepted and part != "tools"]
        return next(iter([*named, *unknown]), None)
