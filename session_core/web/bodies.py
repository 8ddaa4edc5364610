"""What comes in: JSON bodies and what is checked of them, headers and query values."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from flask import request
from pydantic import AfterValidator, BaseModel, FailFast, StringConstraints, ValidationError

from session_core.data.message import Content, content_text, file_parts
from session_core.data.session import TITLE_LENGTH
from session_core.data.strict_json import from_json
from session_core.data.words import Words, parse_words
from session_core.web.errors import ApiError

MODEL_NAME_LENGTH = 200  # characters
SYSTEM_PROMPT_BYTES = 64 << 10
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")

_MISSED = {  # where pydantic's own words would not be understood
    "missing": "must be given",
    "model_type": "must be an object",
}

Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")

FailingFast = Annotated[list[T], FailFast()]  # only the first error is told, and all of them would take seconds
ModelName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MODEL_NAME_LENGTH)]


def json_body(*, optional: bool = False) -> dict[str, Any]:
    """The request's JSON object. With `optional`, an empty one where the request has no body."""
    return parse_json(request.get_data(), optional=optional)


def parse_json(data: bytes, *, optional: bool = False) -> dict[str, Any]:
    """The JSON object in the request's body. Raises ApiError as `json_body` does."""
    if not data and optional:
        return {}
    if data and request.mimetype != "application/json":
        raise ApiError("unsupported_media_type")
    try:
        value = from_json(data)
    except (ValueError, RecursionError):
        raise ApiError("invalid_request", "The body is not JSON in UTF-8.") from None
    if not isinstance(value, dict):
        raise ApiError("invalid_request", "The body must be a JSON object.")
    return value


def parse_body(model: type[Body], body: Mapping[str, Any]) -> Body:
    """The body as this model has it. Raises ApiError that names the first field of another form."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = _name_field(first["loc"], body, is_missing=first["type"] == "missing")
        what = _MISSED.get(first["type"]) or re.sub(r"^\w+( should| error,)", "must", first["msg"])
        raise ApiError("invalid_request", f"{name or 'An item'} {what}.") from None


def _name_field(path: tuple[int | str, ...], value: Any, *, is_missing: bool) -> str:
    """A field by its path, `messages[0].role`. What pydantic adds to the path is left out. A missing field is the
    last of the path."""
    name = ""
    for part in path:
        if isinstance(value, list) and isinstance(part, int) and part < len(value):
            name, value = f"{name}[{part}]", value[part]
        elif isinstance(value, Mapping) and (part in value or (is_missing and part == path[-1])):
            name, value = f"{name}.{part}", value.get(part)
    return name.removeprefix(".")


def check_question(
    content: Content | None, otherwise: str = "The message must have text, and the text must not be blank."
) -> Content:
    """The content of a question, which every dialect gives to this check. Raises ApiError where it is blank and has
    neither a picture nor a file."""
    if content is None or not (file_parts(content) or content_text(content).strip()):
        raise ApiError("invalid_request", otherwise)
    return content


def check_settings(body: Mapping[str, Any]) -> dict[str, str | None]:
    """The settings of a session that a body gives. None removes one. Raises ApiError for one that cannot be set."""
    settings = parse_body(_Settings, body).model_dump(exclude_unset=True)
    return {**settings, "title": settings["title"] or None} if "title" in settings else settings


def check_id(value: Any, name: str, kind: str) -> str:
    """The id of this kind in the field of this name. Raises ApiError where it has another form."""
    if not isinstance(value, str) or not re.fullmatch(rf"{kind}-[0-9a-z-]{{1,64}}", value):
        raise ApiError("invalid_request", f"{name} must be an id that begins with {kind}-.")
    return value


def idempotency_key() -> str | None:
    """The request's Idempotency-Key, None where it has none. Raises ApiError where it has another form."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise ApiError("invalid_request", "Idempotency-Key must be 1 to 255 visible ASCII characters.")
    return key


def number_argument(name: str, least: int, most: int) -> int | None:
    """A whole number of the query, None where it is not given."""
    text = request.args.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise ApiError("invalid_request", f"{name} must be a whole number from {least} to {most}.")
    return int(text)


def words_argument(name: str) -> Words | None:
    """The words of the query value of this name, None where it is not given."""
    text = request.args.get(name)
    try:
        return None if text is None else parse_words(text)
    except ValueError as error:
        raise ApiError("invalid_request", f"{name} must {error}.") from None


def flag_argument(name: str) -> bool:
    """A flag of the query, false where it is not given."""
    text = request.args.get(name, "false")
    if text not in ("true", "false"):
        raise ApiError("invalid_request", f"{name} must be true or false.")
    return text == "true"


def _check_size(text: str) -> str:
    if len(text.encode()) > SYSTEM_PROMPT_BYTES:
        raise ValueError("have at most 64 KiB")
    return text


class _Settings(BaseModel, strict=True):
    """The settings of a session."""

    title: Annotated[str, StringConstraints(strip_whitespace=True, max_length=TITLE_LENGTH)] | None = None
    model: ModelName | None = None
    system_prompt: Annotated[str, AfterValidator(_check_size)] | None = None
