"""What an error of a model server means."""

import email.utils
import logging
import math
import re
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

import openai

from session_core.model.connection import http_library
from session_core.model.events import ModelError

log = logging.getLogger(__name__)

# Each pattern takes time in proportion to the text: what repeats in it is bounded.
_GO_TIMEOUT = re.compile(r"context (deadline exceeded|cancell?ed)", re.IGNORECASE)  # of servers written in Go
_OVERFLOW = re.compile(
    r"context.{0,60}(length|size|window|token|exceed|limit|too (long|large|big))"
    r"|(length|size|window|token|exceed|limit).{0,60}context"
    r"|prompt is (too long|longer)|prompt \(length|too many tokens|maximum (model|sequence) length"
    r"|input token count|reduce the length",
    re.IGNORECASE,
)
_OVERFLOW_CODE = re.compile("context_length_exceeded|exceed_context_size_error")
_BAD_CALL = re.compile(r"tool_use_failed|failed to call a function|failed_generation", re.IGNORECASE)  # Groq
_BAD_KEY = re.compile(
    r"api[ _-]?key|auth\w{0,30}[ _-]error|authenticat|unauthori[sz]ed|no_db_connection",  # the last one: litellm
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"bearer \S+|\b(?:sk|pk|rk|gsk|xai|hf|key)[-_][^\s'\",;]+"
    r"|(?:key|token|secret|password)\w{0,30}\)? ?[:=] ?\S+",
    re.IGNORECASE,
)
_LONG_WORD = re.compile(r"[\w+/*-]{24,}={0,2}")  # a secret, where it has a digit
_TIMEOUTS = (openai.APITimeoutError, http_library.TimeoutException, TimeoutError)
_UNREACHABLE = (openai.APIConnectionError, http_library.HTTPError, OSError)
_NOT_CONNECTED = (http_library.ConnectError, http_library.ConnectTimeout)
_MAX_WORDS = 2000  # characters of an error that are read
_MAX_LOGGED = 300  # characters of them in the log


class NotAnAnswer(ValueError):
    """Something else stands where an answer or a piece of it should be, such as an error. `body` is its JSON."""

    def __init__(self, body: object) -> None:
        super().__init__("not an answer")
        self.body = body


class NoEvent(NotAnAnswer):
    """A stream without any event. llama-cpp-python answers so where the prompt exceeds its context."""


class Failure(ModelError):
    """A failed request.

    `begun` says whether some of the answer was there, `may_pass` whether another try may succeed after `delay`
    seconds. `status` is the HTTP status, if there is one. `words` are the model server's own, and `reason` is what a
    log may hold of them. `too_long` says that the request may be too long for the model, and `overflows` that the
    server says so clearly. `reached` says whether the server has seen the messages at all.
    """

    begun = False
    may_pass = False
    too_long = False
    overflows = False
    reached = True
    words = ""
    reason = ""
    status: int | None = None
    delay: float | None = None

    @property
    def is_bad_call(self) -> bool:
        """Whether the model called a tool in a wrong way, as its server says."""
        return bool(_BAD_CALL.search(self.words))

    def blame(self, options: Collection[str]) -> "Failure":
        """This failure, or the one of a request whose `options` are the caller's own and which the server refuses."""
        if not options or self.code != "model_error" or self.status not in (400, 422):
            return self
        named = [name for name in options if re.search(rf"\b{re.escape(name)}\b", self.words)]
        what = f"the parameter {named[0]}" if named else "the parameters of this request"
        return Failure("invalid_request", f"The model server refuses {what} (status {self.status}).")


def classify_failure(error: Exception, begun: bool, sent: list[str], options: Iterable[str] = ()) -> Failure:
    """What an error of the SDK, of HTTP or of the answer's form means.

    The model server's own words go to the log, without what they repeat of `sent`. So do the names of the request's
    `options`, where the server refuses the request.
    """
    body = getattr(error, "body", None)
    status: int | None = getattr(error, "status_code", None) or _status_within(body)
    words = _words(body)
    reason = _log(error, status, words, sent, options)
    code, sentence = _meaning(error, begun, status, words)
    failure = Failure(code, sentence)
    failure.begun, failure.status, failure.words, failure.reason = begun, status, words, reason
    failure.delay = _delay(error.response.headers if isinstance(error, openai.APIStatusError) else {})
    overflow, empty = code == "context_length_exceeded", isinstance(error, NoEvent)
    failure.too_long = overflow or empty
    failure.overflows = overflow and (status in (400, 413, 422) or bool(_OVERFLOW_CODE.search(words)))
    failure.refused = overflow or empty or (code == "model_error" and status in (400, 413, 422))
    connected = not isinstance(error.__cause__ or error, _NOT_CONNECTED)
    failure.reached = code in ("model_error", "model_timeout") and status != 404 and connected
    failure.may_pass = _may_pass(failure, error)
    if code == "model_rate_limited" and failure.delay is not None:
        failure.retry_after = str(math.ceil(failure.delay))
    return failure


def _log(error: Exception, status: int | None, words: str, sent: list[str], options: Iterable[str]) -> str:
    """Logs an error. Returns what the log has of its words."""
    reason = _masked(words or ("" if status else str(error.__cause__ or error)), sent)
    asked = f" (with -model_options {', '.join(options)})" if status in (400, 422) and options else ""
    log.warning("Model server: %s %s %r%s", type(error).__name__, status or "", reason, asked)
    return reason


def _may_pass(failure: Failure, error: Exception) -> bool:
    if failure.code != "model_error":
        return failure.code in ("model_rate_limited", "model_timeout")
    return isinstance(error, _UNREACHABLE) or (failure.status or 0) >= 500 or failure.is_bad_call


def broken_off(finish_reason: str | None, begun: bool) -> Failure:
    """An answer that ended with a finish reason that means a failure. It goes to the log."""
    log.warning("Model server: the answer broke off with the finish reason %r", finish_reason)
    failure = Failure("model_error", "The model server broke the answer off.")
    failure.begun, failure.may_pass = begun, True
    return failure


def _meaning(error: Exception, begun: bool, status: int | None, words: str) -> tuple[str, str]:
    """The code and the sentence of an error."""
    unreachable = isinstance(error, _UNREACHABLE)
    gave_up = bool(_GO_TIMEOUT.search(words))
    timed_out = isinstance(error, _TIMEOUTS) or status in (408, 504) or gave_up
    overflows = status == 413 or (status in (None, 400, 422, 500) and not gave_up and _OVERFLOW.search(words))
    refuses_key = status in (401, 403) or (status == 400 and _BAD_KEY.search(words))
    cases = (  # the first one counts
        (overflows, "context_length_exceeded", "The conversation is too long for the model."),
        (refuses_key, "model_unauthorized", "The model server does not accept the API key: check api_key."),
        (timed_out, "model_timeout", "The model server did not answer in time."),
        (status == 429, "model_rate_limited", "The model server takes no more requests for now."),
        (
            status == 404,
            "model_error",
            "The model server knows no such model or address (status 404): check model and base_url.",
        ),
        (status, "model_error", f"The model server answered with an error (status {status})."),
        (unreachable and begun, "model_error", "The connection to the model server broke."),
        (
            unreachable,
            "model_error",
            "The model server could not be reached: check base_url, and whether it runs.",
        ),
        (words, "model_error", "The model server answered with an error."),
        (
            isinstance(error, NoEvent),
            "model_error",
            "The model server answered with nothing. The message may be too long for the model.",
        ),
        (True, "model_error", "The model server sent something that is not an answer: check base_url."),
    )
    return next((code, sentence) for applies, code, sentence in cases if applies)


def _status_within(body: object) -> int | None:
    """The status in the code of an error that came in a stream, if there is one."""
    error = body.get("error", body) if isinstance(body, dict) else None
    codes = [str(error.get(key)) for key in ("code", "status", "status_code")] if isinstance(error, dict) else []
    return next((int(code) for code in codes if re.fullmatch("[45][0-9][0-9]", code)), None)


def _words(body: object, depth: int = 0) -> str:
    """The words of an error's body, wherever servers put them, and nothing else, since it may echo the request."""
    if isinstance(body, (str, int)):
        return str(body)[:_MAX_WORDS]
    if isinstance(body, list) and depth < 5:
        return " ".join(_words(item, depth + 1) for item in body[:5])
    if isinstance(body, dict) and depth < 5:
        keys = ("code", "type", "param", "loc", "message", "msg", "detail", "error")
        return " ".join(_words(body[key], depth + 1) for key in keys if body.get(key))
    return ""


def _masked(words: str, sent: list[str]) -> str:
    """One short line for the log, without anything that looks like a key, or repeats eight characters of `sent`.

    Model servers quote the request in their errors, and no message text may stand in a log line.
    """
    words = _SECRET.sub("***", " ".join(words[:_MAX_WORDS].split()))
    words = _LONG_WORD.sub(lambda word: "***" if any(map(str.isdigit, word[0])) else word[0], words)[:_MAX_LOGGED]
    text = " ".join(" ".join(sent).split())
    pieces = {words[start : start + 8] for start in range(len(words) - 7)}
    repeated = {piece for start in range(len(text) - 7) if (piece := text[start : start + 8]) in pieces}
    starts = (start for start in range(len(words) - 7) if words[start : start + 8] in repeated)
    hidden = {index for start in starts for index in range(start, start + 8)}
    return re.sub("\0+", "…", "".join("\0" if index in hidden else letter for index, letter in enumerate(words)))


def _delay(headers: Mapping[str, str]) -> float | None:
    """The seconds that the server asks to wait, if it does (RFC 9110, section 10.2.3)."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        with suppress(ValueError, KeyError):
            seconds = float(headers[name]) / unit
            if 0 <= seconds < math.inf:
                return seconds
    with suppress(ValueError, KeyError):
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    return None
