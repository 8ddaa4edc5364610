"""Which calls of a tool need approval."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pydantic
import pytest

from agent import Agent, CallId, Tool, tool
from session_core.tools.files import ToolFileError, load_tools
from session_server import create_app
from storage import MemoryStorage


def pay(amount: int, to: str = "bank") -> str:
    """Pays."""
    return f"{amount} to {to}"


def marked(function: Callable[..., Any], rule: Any) -> Tool:
    @tool(needs_approval=rule)
    def copy(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    copy.__annotations__, copy.__name__ = function.__annotations__, function.__name__
    copy.__wrapped__ = function  # type: ignore[attr-defined]
    return Tool(copy)


def test_nothing_needs_approval_by_default() -> None:
    plain = Tool(pay)
    assert (plain.may_need_approval, plain.needs_approval('{"amount": 5}')) == (False, False)


@pytest.mark.parametrize("rule", [True, False])
def test_a_mark_holds_for_every_call(rule: bool) -> None:
    @tool(needs_approval=rule)
    def delete(name: str) -> str:
        """Deletes."""
        return name

    made = Tool(delete)
    assert (made.may_need_approval, made.needs_approval('{"name": "a"}'), made.needs_approval("[")) == (rule,) * 3
    assert made('{"name": "a"}') == "a"


def test_an_attribute_of_the_function_is_a_mark_too() -> None:
    def delete(name: str) -> str:
        """Deletes."""
        return name

    delete.needs_approval = True  # type: ignore[attr-defined]
    assert Tool(delete).needs_approval("{}")


def test_a_function_of_the_arguments_says_which_calls() -> None:
    assert marked(pay, lambda amount: amount > 100).needs_approval('{"amount": 5}') is False
    made = marked(pay, lambda amount, to="": amount > 100 and to != "me")
    assert made.may_need_approval
    calls = ['{"amount": 5}', '{"amount": 500}', '{"amount": 500, "to": "me"}', '{"amount": "500"}']
    assert [made.needs_approval(call) for call in calls] == [False, True, False, True]
    assert made.needs_approval('```json\n{"amount": 5}\n```') is False


def test_where_the_function_raises_approval_is_needed() -> None:
    assert marked(pay, lambda amount: amount > 100).needs_approval('{"amount": 5, "to": "me"}')
    assert marked(pay, lambda **given: given["nothing"]).needs_approval('{"amount": 5}')


@pytest.mark.parametrize("arguments", ["", "[1]", "{", '{"amount": "much"}', '{"amount": 5, "more": 1}'])
def test_where_the_arguments_do_not_fit_approval_is_needed(arguments: str) -> None:
    assert marked(pay, lambda **_: False).needs_approval(arguments)


def test_the_function_gets_the_arguments_as_the_tool_gets_them() -> None:
    seen: list[dict[str, Any]] = []
    lower = Annotated[str, pydantic.StringConstraints(to_lower=True)]

    def book(day: datetime.date, name: lower, call: CallId, *, seats: int = 1, **more: Any) -> str:  # type: ignore[valid-type]
        """Books."""
        return f"{day} {name} {call} {seats} {more}"

    book.needs_approval = lambda **given: bool(seen.append(given))  # type: ignore[attr-defined]
    book.__annotations__ = {
        "day": datetime.date,
        "name": lower,
        "call": CallId,
        "seats": int,
        "more": Any,
        "return": str,
    }
    made = Tool(book)
    assert made.needs_approval('{"day": "2026-01-31", "name": "EVIL", "window": true}') is False
    assert seen == [{"day": datetime.date(2026, 1, 31), "name": "evil", "window": True}]
    assert made('{"day": "2026-01-31", "name": "EVIL"}', "call_1") == "2026-01-31 evil call_1 1 {}"


def test_an_async_tool_can_be_marked() -> None:
    @tool(needs_approval=lambda name: name != "a")
    async def delete(name: str) -> str:
        """Deletes."""
        return name

    made = Tool(delete)
    assert [made.needs_approval(f'{{"name": "{name}"}}') for name in "ab"] == [False, True]
    assert made('{"name": "a"}') == "a"


async def rule(**_: Any) -> bool:
    return False


@pytest.mark.parametrize("mark", ["yes", 1, None, rule])
def test_a_mark_that_is_none_is_an_error(mark: Any) -> None:
    with pytest.raises(ValueError, match="pay cannot be a tool: its needs_approval is neither true nor a plain"):
        marked(pay, mark)


def test_a_file_marks_its_tools(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from agent import tool\n"
        "@tool(needs_approval=lambda amount: amount > 100)\n"
        "def pay(amount: int) -> str:\n    return ''\n"
        "def look(name: str) -> str:\n    return ''\n"
    )
    tools = {one.name: one for one in load_tools(str(tmp_path / "mine.py"))}
    assert {name: one.may_need_approval for name, one in tools.items()} == {"pay": True, "look": False}
    (tmp_path / "other.py").write_text("def pay() -> str:\n    return ''\npay.needs_approval = 'yes'\n")
    with pytest.raises(ToolFileError, match=r"other\.py line 1: pay cannot be a tool"):
        load_tools(str(tmp_path / "other.py"))


def test_the_list_of_tools_tells_what_may_need_approval() -> None:
    def look(name: str) -> str:
        """Looks."""
        return name

    agent = Agent(api_key="k", model="m", tools=[marked(pay, lambda amount: amount > 100), look])
    listed = create_app(MemoryStorage(), agent).test_client().get("/tools").json
    assert listed is not None
    assert {one["name"]: one["needs_approval"] for one in listed["tools"]} == {"pay": True, "look": False}
