"""Strings that UTF-8 can hold, JSON objects that every server can read, and questions that front ends wrap."""

from typing import Any

from session_core.data.strict_json import from_json


def utf8_text(value: object) -> str:
    """The string, with halves of a character joined or replaced. Empty for anything that is no string."""
    if not isinstance(value, str):
        return ""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def json_object(text: object) -> dict[str, Any] | None:
    """The object that a JSON text stands for. None where it is no object, or not one that every server can read."""
    if not isinstance(text, str):
        return None
    try:
        value = from_json(text.encode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def as_object(value: object) -> dict[str, Any]:
    """The value, or an empty object where it is none."""
    return value if isinstance(value, dict) else {}


def unwrap_question(text: str) -> str:
    """The question itself, where a front end has put something before it; else the text as it is."""
    return unwrapped_forms(text)[-1]


def unwrapped_forms(text: str) -> list[str]:
    """The text, then what stays of it without each thing that a front end has put before the question: instructions
    and context (`rag_template` of Open WebUI), and a list of files (`add_file_context` of Open WebUI)."""
    forms = [text]
    if text.startswith("### Task:") and "<context>" in text:
        _, tag, query = text.rpartition("<user_query>")
        query = query.partition("</user_query>")[0] if tag else text.rpartition("</context>")[2]
        forms.append(query.strip())
    if forms[-1].startswith("<attached_files>"):
        forms.append(forms[-1].partition("</attached_files>")[2].strip())
    return [form for form in forms if form] or [text]
