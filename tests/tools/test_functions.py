"""Tools: what goes in, what comes out, several at a time, and from a file."""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

from session_core.model.budget import Budget
from session_core.model.cancellation import Cancellation
from session_core.model.events import Cancelled, ModelError, ToolCall
from session_core.tools.calls import MAX_AT_ONCE, run_calls
from session_core.tools.files import ToolFileError, load_tools
from session_core.tools.functions import CallId, Tool, read_arguments, result_text
from session_core.web.logs import PlainLines
from tests.support.server import TIMEOUT, wait_until


@dataclasses.dataclass
class Point:
    x: int
    y: float


class Model(pydantic.BaseModel):
    a: int
    when: datetime.date


# --- results ---


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (Point(1, 0.5), '{"x":1,"y":0.5}'),
        (Model(a=1, when=datetime.date(2026, 1, 31)), '{"a":1,"when":"2026-01-31"}'),
        ([datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC)], '["2026-01-31T00:00:00Z"]'),
        (b"hello", '"hello"'),
        ({"data": b"\xff"}, '{"data":"_w=="}'),
        ([float("nan"), float("inf")], "[null,null]"),
        ({1: {"é"}}, '{"1":["é"]}'),
        (None, "null"),
        (Path("a/b"), '"a/b"'),
    ],
)
def test_a_result_is_json_as_pydantic_writes_it(value: Any, text: str) -> None:
    assert result_text(value) == text


def test_a_result_of_any_kind_is_text() -> None:
    assert json.loads(result_text([object(), threading])) is not None


# --- arguments ---


def add(a: int, b: int = 0) -> int:
    """Adds."""
    return a + b


@pytest.mark.parametrize(
    "arguments",
    [
        '{"a": 1, "b": 2}',
        '"{\\"a\\": 1, \\"b\\": 2}"',
        '```json\n{"a": 1, "b": 2}\n```',
        '```\n{"a":1,"b":2}```',
        ' {"a":1,"b":2}\n',
    ],
)
def test_arguments_that_are_nearly_right_are_understood(arguments: str) -> None:
    assert Tool(add)(arguments) == "3"


def test_nothing_is_no_arguments() -> None:
    def now() -> str:
        return "now"

    assert Tool(now)("") == Tool(now)("  ") == Tool(now)("{}") == "now"


@pytest.mark.parametrize("arguments", ["[1]", "1", '"x"', "{", '{"a": NaN}', '{"a": 1} and more', "null"])
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    with pytest.raises(ValueError, match="not a JSON object"):
        Tool(add)(arguments)


def test_an_async_function_is_a_tool() -> None:
    async def fetch(word: str) -> dict[str, str]:
        """Fetches."""
        return {"word": word}

    tool = Tool(fetch)
    assert (tool.name, tool.description, list(tool.parameters["properties"])) == ("fetch", "Fetches.", ["word"])
    assert tool('{"word": "x"}') == '{"word":"x"}'


def test_the_id_of_the_call_is_filled_in_and_not_told() -> None:
    def book(seat: int, call: CallId, row: str = "a") -> str:
        """Books."""
        return f"{seat}{row} {call}"

    async def book_later(call: CallId) -> str:
        return call

    tool = Tool(book)
    assert list(tool.parameters["properties"]) == ["seat", "row"]
    assert tool('{"seat": 2, "row": "b"}', "call_7") == "2b call_7"
    with pytest.raises(ValueError, match="invalid arguments"):
        tool('{"seat": 2, "call": "mine"}', "call_7")
    assert Tool(book_later)("", "call_8") == "call_8"


def test_a_function_with_an_annotation_that_nobody_knows_names_the_remedy() -> None:
    def odd(x: threading.Lock) -> None:  # type: ignore[valid-type]
        pass

    with pytest.raises(ValueError, match=r"odd cannot be a tool: .*change the annotation"):
        Tool(odd)


# --- several at a time ---


def calls(*names: str) -> list[ToolCall]:
    return [ToolCall(f"call_{number}", name, "{}") for number, name in enumerate(names)]


def run(
    tools: list[Callable[..., Any]], names: list[str], timeout: float = TIMEOUT, stop: Cancellation | None = None
) -> Any:
    budget = Budget(stop or Cancellation(), 2 * TIMEOUT)
    return run_calls({tool.name: tool for tool in map(Tool, tools)}, calls(*names), budget, timeout)


def test_calls_run_at_the_same_time_and_their_results_keep_the_order() -> None:
    together = threading.Barrier(MAX_AT_ONCE)
    number = iter(range(100))

    def meet() -> int:
        mine = next(number)
        together.wait(TIMEOUT)
        return mine

    results = list(run([meet], ["meet"] * MAX_AT_ONCE))
    assert [result.id for result in results] == [f"call_{index}" for index in range(MAX_AT_ONCE)]
    assert {result.result for result in results} == {str(index) for index in range(MAX_AT_ONCE)}


def test_no_more_than_eight_run_at_once() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    assert len(list(run([work], ["work"] * 30))) == 30
    assert 1 < most <= MAX_AT_ONCE


def test_a_call_that_hangs_is_abandoned_and_the_others_go_on() -> None:
    released = threading.Event()

    def hang() -> str:
        released.wait(TIMEOUT)
        return "too late"

    def quick() -> str:
        return "done"

    results = list(run([hang, quick], ["hang"] * MAX_AT_ONCE + ["quick"], timeout=1.0))
    released.set()
    assert [result.error for result in results[:-1]] == ["the tool did not answer in time"] * MAX_AT_ONCE
    assert results[-1].result == "done"


def test_a_stop_is_heard_while_tools_work() -> None:
    released, began, stop = threading.Event(), threading.Event(), Cancellation()

    def hang() -> None:
        began.set()
        released.wait(TIMEOUT)

    results = run([hang], ["hang"], stop=stop)
    threading.Thread(target=lambda: (began.wait(TIMEOUT), stop.cancel())).start()
    with pytest.raises(Cancelled):
        next(results)
    released.set()


def test_a_call_hears_that_it_is_abandoned_and_calls_that_wait_do_not_begin() -> None:
    abandoned, stop, begun = threading.Event(), Cancellation(), []

    class Listener(Tool):
        def __call__(self, arguments: str, call_id: str = "", cancellation: Cancellation | None = None) -> str:
            begun.append(call_id)
            assert cancellation
            with cancellation.on_cancel(abandoned.set):
                stop.cancel()
                abandoned.wait(TIMEOUT)
            return "too late"

    results = run_calls({"add": Listener(add)}, calls(*["add"] * 30), Budget(stop, TIMEOUT), TIMEOUT)
    with pytest.raises(Cancelled):
        list(results)
    assert abandoned.wait(TIMEOUT)
    assert len(begun) <= MAX_AT_ONCE


def test_the_time_of_the_turn_ends_the_wait() -> None:
    released = threading.Event()

    def hang() -> None:
        released.wait(TIMEOUT)

    results = run_calls({"hang": Tool(hang)}, calls("hang"), Budget(Cancellation(), 0.3), TIMEOUT)
    with pytest.raises(ModelError):
        next(results)
    released.set()


def test_other_threads_are_heard_sooner_while_a_tool_computes() -> None:
    def interval() -> float:
        return sys.getswitchinterval()

    wait_until(lambda: all(thread.name != "tool" for thread in threading.enumerate()))  # those of the tests before
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.05)
    try:
        [result] = run([interval], ["interval"])
        assert float(result.result) == pytest.approx(0.005, rel=1e-3)
        assert sys.getswitchinterval() == pytest.approx(0.05, rel=1e-3)
    finally:
        sys.setswitchinterval(before)


def test_a_failure_is_logged_with_its_place_and_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise KeyError("a secret of the user")

    [result] = run([broken], ["broken"])
    assert result.error == "the tool failed (KeyError)"
    text = "".join(PlainLines().format(record) for record in caplog.records)
    assert "in broken" in text
    assert "a secret of the user" not in text.replace('raise KeyError("a secret of the user")', "")


# --- from a file ---


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_gives_the_public_functions_that_it_defines(tmp_path: Path) -> None:
    text = "from json import dumps\ndef one(): pass\ndef _two(): pass\nasync def three(): pass\nclass Four: pass\n"
    tools = load_tools(write(tmp_path, text))
    assert [(tool.name, tool.source) for tool in tools] == [("one", "mine.py"), ("three", "mine.py")]


def test_a_list_of_tools_goes_before_the_public_functions(tmp_path: Path) -> None:
    text = "from calculator import calculator\ndef one(): pass\ndef two(): pass\nTOOLS = [two, calculator]\n"
    assert [tool.name for tool in load_tools(write(tmp_path, text))] == ["two", "calculator"]


def test_a_file_may_import_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("ANSWER = 42\n")
    [tool] = load_tools(write(tmp_path, "import neighbour_of_mine\ndef ask(): return neighbour_of_mine.ANSWER\n"))
    assert tool("") == "42"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def one(:\n", "line 1: invalid syntax"),
        ("import no_such_module_anywhere\n", "line 1: ModuleNotFoundError"),
        ("x = 1\ny = 1 / 0\n", "line 2: ZeroDivisionError"),
        ("x = 1\n", "has no tools"),
        ("TOOLS = [1]\n", "cannot be a tool"),
        ("import threading\n\ndef odd(x: threading.Lock): pass\n", "line 3: odd cannot be a tool"),
        ("def one(): pass\nTOOLS = 5\n", "has no tools"),
        ("raise SystemExit(3)\n", "line 1: SystemExit"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ToolFileError) as caught:
        load_tools(write(tmp_path, text))
    assert "mine.py" in str(caught.value) and said in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolFileError, match=r"none\.py cannot be read"):
        load_tools(str(tmp_path / "none.py"))


@pytest.mark.parametrize(
    "given",
    ["```json\n" + " \n" * 400_000, "```" * 400_000, "```\n" + "`" * 800_000, "\n" * 800_000 + "```", "{" * 800_000],
)
def test_arguments_that_are_nearly_right_are_read_in_linear_time(given: str) -> None:
    began_at = time.process_time()
    with pytest.raises(ValueError, match="the arguments are not a JSON object"):
        read_arguments(given)
    assert time.process_time() - began_at < 2


@pytest.mark.parametrize("given", ["```\n{}\n```", "```json\n{}```", " ```JSON \r\n\n {} \n``` ", '```\n"{}"\n```'])
def test_a_fence_around_the_arguments_is_understood(given: str) -> None:
    assert read_arguments(given) == {}


@pytest.mark.parametrize("given", ["```{}```", "```python\n{}\n```", "```", "``````", "````"])
def test_another_fence_is_not(given: str) -> None:
    with pytest.raises(ValueError, match="the arguments are not a JSON object"):
        read_arguments(given)
