"""What a model server takes and what it misses, learned from its refusals."""

import logging
import re
import time
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass, replace
from enum import Enum

from session_core.model.failures import Failure

log = logging.getLogger(__name__)

OptionalPart = str  # that some servers refuse: `usage`, `provider_metadata`, `tools`, a tool, `pictures`, `files`

REMEMBERED_SECONDS = 600.0
_MISSES_REASONING = re.compile(
    r"(missing|required|must|need|lack|without).{0,100}reasoning_content"
    r"|reasoning_content.{0,100}(missing|required|must|need|lack)",
    re.IGNORECASE | re.DOTALL,
)
_UNKNOWN_FIELD = re.compile(r"unsupported|not (permitted|allowed|supported)|extra|unknown|unrecogni|unexpected", re.I)
_MISSES_SIGNATURE = re.compile(r"thought_?signature", re.IGNORECASE)
_MISSES_SHORT_ID = re.compile(
    r"tool.?calls?.{0,30}\bid\b.{0,80}(length|long|must|format|pattern)", re.IGNORECASE | re.DOTALL
)
_NAMES: dict[OptionalPart, re.Pattern[str]] = {
    "usage": re.compile(r"stream_options|include_usage", re.IGNORECASE),
    "provider_metadata": re.compile(r"reasoning|extra_content|thought|extra_forbidden|extra inputs", re.IGNORECASE),
    "pictures": re.compile(r"image|vision|multi-?modal|picture|\bcontent\b.{0,60}\b(str|string|text)\b", re.I),
    "files": re.compile(r"\bfiles?\b|\bfile_data|pdf|document|\bcontent\b.{0,60}\b(str|string|text)\b", re.I),
    "tools": re.compile(r"\btools?\b|\btool[_ -]?(choice|use|call)|function[_ -]?call", re.IGNORECASE),
}
_NOT_SERVED = re.compile(
    r"support|require|enable|jinja|available|allow|permit|implement|unknown|cannot|can't|can not", re.IGNORECASE
)
_TAKES_NONE = re.compile(r"\bcontent\b|at most 0\b|not an? \w{0,5}-?(modal|vision)", re.IGNORECASE)
_BAD_FILE = re.compile(
    r"valid (image|file|pdf|base64)|(process|decode|read|load|download|identify|open|parse)\w{0,3}\b.{0,40}"
    r"(image|file|pdf)|(image|file|pdf).{0,40}(format|corrupt|broken|too |exceed|size|bytes|pixel|dimension)",
    re.IGNORECASE,
)
_NOT_SERVED_AT_ALL = re.compile(r"(not|n't|un)\W{0,3}support|jinja|enable-auto-tool|requires?\b", re.IGNORECASE)
_QUOTED = re.compile(r"\"[^\"]{0,500}\"|\bpars(e|ing)\b.{0,2000}", re.IGNORECASE | re.DOTALL)
_SCHEMA = re.compile(r"schema|parameters|declaration|invalid_function", re.IGNORECASE)
_TOOL_NUMBER = re.compile(
    r"declarations?\W{1,2}(\d{1,4})\b|\btools?\W{1,2}(\d{1,4})\b(?!.{0,30}declaration)", re.IGNORECASE
)
_REMEDY = "vLLM wants --enable-auto-tool-choice and --tool-call-parser, llama.cpp's server --jinja"


class ForeignCalls(Enum):
    """What becomes of tool calls that another model made."""

    UNSIGNED = 0
    SIGNED = 1
    TEXT = 2


@dataclass(frozen=True)
class RequestForm:
    """How a request is built.

    It is without the parts that are `refused`. With `reasoning_everywhere`, each assistant's message with tool calls
    has `reasoning_content`. With `short_ids`, all ids of calls have nine letters or digits.
    """

    refused: frozenset[OptionalPart] = frozenset()
    reasoning_everywhere: bool = False
    foreign_calls: ForeignCalls = ForeignCalls.UNSIGNED
    short_ids: bool = False

    def has(self, part: OptionalPart) -> bool:
        """Whether a request has this part, where there is something to put into it."""
        return part not in self.refused

    def without(self, parts: Set[OptionalPart]) -> "RequestForm":
        """This form without some parts."""
        form = replace(self, refused=self.refused | parts)
        if "provider_metadata" in parts:  # signatures and empty reasoning are of the same kind
            signed = self.foreign_calls is ForeignCalls.SIGNED
            form = replace(
                form,
                reasoning_everywhere=False,
                foreign_calls=ForeignCalls.UNSIGNED if signed else self.foreign_calls,
            )
        return form

    def offers(self, tool: str) -> bool:
        """Whether this tool is offered."""
        return self.has("tools") and self.has(tool_part(tool))


def tool_part(name: str) -> OptionalPart:
    """The part of a request that is one tool."""
    return f"tool {name}"


class Capabilities:
    """The form that one model on one server takes. Safe for any number of threads.

    What is learned is forgotten after ten minutes, and what was once taken is never remembered as refused.
    """

    def __init__(self, form: RequestForm, clock: Callable[[], float] = time.monotonic) -> None:
        self.accepted: frozenset[OptionalPart] = frozenset()
        self._first_form = form
        self._form = form
        self._clock = clock
        self._forgotten_at = 0.0

    @property
    def form(self) -> RequestForm:
        """The form of the next request."""
        return self._form if self._clock() < self._forgotten_at else self._first_form

    def learn(self, form: RequestForm) -> None:
        """Remembers the form of a request that was answered."""
        self._form = replace(form, refused=form.refused - self.accepted)
        self._forgotten_at = self._clock() + REMEMBERED_SECONDS


class Negotiation:
    """The form of one request after the other, until one is taken or nothing is left to change.

    `sent` are the parts that the last request has.
    Where `options` of the caller's own are in the requests, nothing is remembered of the refusals.
    """

    def __init__(self, capabilities: Capabilities, options: Collection[str] = ()) -> None:
        self.form = capabilities.form
        self._capabilities = capabilities
        self._options = options
        self.sent: list[OptionalPart] = []
        self._tried: set[OptionalPart] = set()
        self._before: RequestForm | None = None  # of the last request, where parts were dropped after it
        self._words = ""
        self._reasons: list[str] = []  # of the server, for what has changed
        self._once: set[OptionalPart] = set()  # of what was refused: what says nothing of other requests

    def accept(self) -> None:
        """Remembers that the last request was answered."""
        if self._reasons:
            dropped = self.form.refused - self._capabilities.form.refused
            kept = not self._options and not dropped & (self._capabilities.accepted | self._once)
            what = f"is asked without {', '.join(sorted(dropped))}" if dropped else "is asked in another form"
            remedy = f"; {_REMEDY}" if "tools" in dropped else ""
            span = f"for {REMEMBERED_SECONDS / 60:.0f} minutes" if kept else "this time"
            log.warning("The model server %s %s, since it says: %s%s", what, span, "; ".join(self._reasons), remedy)
            if not self._options:
                self._capabilities.learn(replace(self.form, refused=self.form.refused - self._once))
        self._capabilities.accepted |= set(self.sent)

    def change(self, failure: Failure) -> bool:
        """Changes the form after the refusal of the last request. Returns False where no other form may help."""
        if self._before and failure.words == self._words:  # the same refusal: the parts were not its cause
            self.form = self._before
            self._reasons.pop()
        self._before, self._words = None, failure.words
        if failure.is_bad_call:
            return False
        form = self._added(failure) if failure.status in (400, 422) else None
        if form is None and (parts := self._refused_files(failure) or self._suspects(failure)):
            self._tried |= parts
            self._before = self.form
            form = self.form.without(parts)
        if form is None:
            return False
        self.form = form
        self._reasons.append(failure.reason or f"status {failure.status}")
        return True

    def _added(self, failure: Failure) -> RequestForm | None:
        """The form with what the server misses, if its words say so."""
        form = replace(self.form, refused=self.form.refused - {"provider_metadata"})
        misses_reasoning = _MISSES_REASONING.search(failure.words) and not _UNKNOWN_FIELD.search(failure.words)
        if misses_reasoning and not form.reasoning_everywhere:
            return replace(form, reasoning_everywhere=True)
        if _MISSES_SIGNATURE.search(failure.words) and form.foreign_calls is not ForeignCalls.TEXT:
            return replace(form, foreign_calls=ForeignCalls(form.foreign_calls.value + 1))
        if _MISSES_SHORT_ID.search(failure.words) and not form.short_ids:
            return replace(self.form, short_ids=True)
        return None

    def _suspects(self, failure: Failure) -> set[OptionalPart]:
        """What the server most likely refuses: what its words name, else a part that it has never taken."""
        left = [part for part in self.sent if part not in self._tried]
        if failure.status == 500:
            return {"tools"} & set(left) if _serves_no_tools(failure.words) else set()
        if failure.status not in (400, 422) or failure.code != "model_error":
            return set()
        if tools := self._named_tools(failure.words) & set(left):
            return tools
        named = [part for part in left if _is_named(part, failure.words)]
        if not named and not any(re.search(rf"\b{re.escape(name)}\b", failure.words) for name in self._options):
            never_taken = set(left) - self._capabilities.accepted
            named = [part for part in ("usage", "provider_metadata") if part in never_taken]
        return set(named[:1])

    def _refused_files(self, failure: Failure) -> set[OptionalPart]:
        """The pictures or the files, where the words name them. What is not clearly said of all is remembered of
        none."""
        left = [part for part in ("pictures", "files") if part in self.sent and part not in self._tried]
        named = [part for part in left if _NAMES[part].search(failure.words)]
        says_never = not _BAD_FILE.search(failure.words) and (
            _NOT_SERVED.search(failure.words) or _TAKES_NONE.search(failure.words)
        )
        statuses = (400, 404, 415, 422, 500, 501) if says_never else (400, 415, 422)
        if failure.code != "model_error" or failure.status not in statuses:
            return set()
        self._once |= set() if says_never else set(named[:1])
        return set(named[:1])

    def _named_tools(self, words: str) -> set[OptionalPart]:
        """The tools whose schema the words complain of, by name or by number."""
        if not _SCHEMA.search(words):
            return set()
        names = [part.removeprefix("tool ") for part in self.sent if part.startswith("tool ")]
        if found := {tool_part(name) for name in names if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", words)}:
            return found
        numbers = (int(match.group(1) or match.group(2)) for match in _TOOL_NUMBER.finditer(words))
        return {tool_part(names[number]) for number in numbers if number < len(names)}


def _is_named(part: OptionalPart, words: str) -> bool:
    """Whether the words complain of a part as such."""
    found = part in _NAMES and _NAMES[part].search(words)
    return bool(found) and (part != "tools" or bool(_NOT_SERVED.search(words)))


def _serves_no_tools(words: str) -> bool:
    words = _QUOTED.sub("", words)
    return bool(_NAMES["tools"].search(words) and _NOT_SERVED_AT_ALL.search(words))
