"""`GET /metrics`: what it counts, and what no caller can make of it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import TestResponse

from calculator import calculator
from session_core.stores.files import FileStorage
from session_core.telemetry.metrics import Metrics
from session_core.telemetry.spans import Observer, Result, ToolSpan
from session_server import main
from tests.support.client import BreakableStorage, Client, error_of
from tests.support.model_server import BREAK, STALL, answer, status, tool_call, tool_calls
from tests.support.server import ROOT, TIMEOUT, Server
from tests.web.test_users import TOKENS, by, write

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

USAGE = {
    "prompt_tokens": 31,
    "completion_tokens": 5,
    "total_tokens": 36,
    "prompt_tokens_details": {"cached_tokens": 16},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def samples(text: str) -> Samples:
    """All samples of a scrape by name and labels, without the prefix."""
    return {
        (sample.name.removeprefix("session_server_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Scrape:
    """What /metrics says now."""

    def __init__(self, client: Client) -> None:
        response = client.get("/metrics")
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.text = response.text
        self.samples = samples(response.text)

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples.get((name, tuple(sorted(labels.items()))), 0.0)

    def labels(self, name: str, label: str) -> set[str]:
        """The values of a label."""
        return {dict(labels)[label] for metric, labels in self.samples if metric == name}


def test_a_turn_counts_with_its_seconds_and_the_seconds_to_its_first_chunk() -> None:
    with Client(answer("Hello", " world"), metrics=True) as client:
        before = Scrape(client)
        assert before("turns_total", status="completed") == before("turn_seconds_count") == 0
        client.run(client.create())
        after = Scrape(client)
    assert after("turns_total", status="completed") == 1
    assert after("turn_seconds_count") == after("first_chunk_seconds_count") == 1
    assert after("turn_seconds_bucket", le="+Inf") == 1
    assert 0 < after("first_chunk_seconds_sum") <= after("turn_seconds_sum") < TIMEOUT
    assert after("running_turns") == 0


@pytest.mark.parametrize(
    ("reply", "turn", "call", "chunks"),
    [
        (answer("Hel", finish_reason="length"), "incomplete", "ok", 1),
        (answer("Hel", BREAK), "model_error", "model_error", 1),
        (status(401), "model_unauthorized", "model_unauthorized", 0),
        (status(429, {}, {"Retry-After": "3600"}), "model_rate_limited", "model_rate_limited", 0),
    ],
)
def test_a_turn_and_its_call_count_by_what_became_of_them(reply: Any, turn: str, call: str, chunks: int) -> None:
    with Client(reply, metrics=True) as client:
        client.run(client.create())
        scrape = Scrape(client)
    assert scrape("turns_total", status=turn) == 1
    assert scrape("model_calls_total", outcome=call) == 1
    assert scrape("first_chunk_seconds_count") == chunks


def test_each_try_of_a_call_counts() -> None:
    with Client(status(500), answer("OK"), metrics=True) as client:
        client.run(client.create())
        scrape = Scrape(client)
    assert scrape("model_calls_total", outcome="model_error") == 1
    assert scrape("model_calls_total", outcome="ok") == 1
    assert scrape("turns_total", status="completed") == 1


def test_a_running_turn_counts_until_it_is_cancelled() -> None:
    with Client(answer("Hel", STALL), metrics=True) as client:
        session = client.create()
        stream = client.stream(session)
        assert stream.next("stream_chunk")
        assert Scrape(client)("running_turns") == 1
        client.cancel(session)
        stream.rest()
        client.model.closed.wait(TIMEOUT)
        scrape = Scrape(client)
    assert scrape("running_turns") == 0
    assert scrape("turns_total", status="cancelled") == 1
    assert scrape("http_requests_total", route="/sessions/{id}/run_stream", method="POST", status="200") == 1


def test_a_turn_that_two_clients_read_counts_once() -> None:
    with Client(answer("Hel", STALL), metrics=True) as client:
        session = client.create()
        first = client.stream(session)
        assert first.next("stream_chunk")
        second = client.watch(session)
        assert second.next("stream_chunk")
        assert Scrape(client)("running_turns") == 1
        client.cancel(session)
        first.rest()
        second.rest()
        scrape = Scrape(client)
    assert scrape("turns_total", status="cancelled") == scrape("first_chunk_seconds_count") == 1


def test_two_readers_of_the_metrics_read_the_same() -> None:
    with Client(metrics=True) as client:
        client.run(client.create())
        one, other = Scrape(client), Scrape(client)
        moved = {key for key in one.samples | other.samples if one.samples.get(key) != other.samples.get(key)}
    assert {name for name, _ in moved if not name.startswith("process_")} <= {
        "http_requests_total",  # the first reader's own request
        "http_requests_created",
    }
    assert one("turns_total", status="completed") == 1


def test_a_shutdown_counts_the_turns_that_it_ends() -> None:
    with Client(answer("Hel", STALL), metrics=True) as client:
        stream = client.stream(client.create())
        assert stream.next("stream_chunk")
        client.shut_down()
        stream.rest()
        scrape = Scrape(client)
    assert scrape("turns_total", status="shutting_down") == 1
    assert scrape("running_turns") == 0


def test_tokens_count_by_kind() -> None:
    with Client(answer("OK", usage=USAGE), answer("OK", usage=USAGE), metrics=True) as client:
        session = client.create()
        client.run(session)
        client.run(session)
        scrape = Scrape(client)
    kinds = {"input": 62, "cached": 32, "output": 10, "reasoning": 6}
    assert {kind: scrape("tokens_total", kind=kind) for kind in kinds} == kinds


@pytest.mark.parametrize(
    "usage",
    [{"prompt_tokens": "31"}, {"prompt_tokens": -1, "completion_tokens": True}, {"prompt_tokens_details": [1]}],
)
def test_usage_that_is_none_counts_no_tokens(usage: dict[str, Any]) -> None:
    with Client(answer("OK", usage=usage), metrics=True) as client:
        assert client.run(client.create()).status_code == 200
        scrape = Scrape(client)
    assert {scrape("tokens_total", kind=kind) for kind in ("input", "cached", "output", "reasoning")} == {0}


def fail() -> str:
    """Fails."""
    raise ZeroDivisionError


def test_calls_of_tools_count_by_tool_and_outcome() -> None:
    calls = tool_calls(("calculator", {"expression": "1+1"}), ("calculator", {"expression": "x"}), ("fail", {}))
    with Client(calls, answer("OK"), tools=(calculator, fail), metrics=True) as client:
        client.run(client.create())
        scrape = Scrape(client)
    assert scrape("tool_calls_total", tool="calculator", outcome="ok") == 1
    assert scrape("tool_calls_total", tool="calculator", outcome="error") == 1
    assert scrape("tool_calls_total", tool="fail", outcome="error") == 1
    assert scrape("model_calls_total", outcome="ok") == 2


def test_tools_that_the_model_makes_up_are_one_label() -> None:
    replies = [tool_calls(*((f"made_up_{number}_{k}", {}) for k in range(20))) for number in range(5)]
    with Client(*replies, answer("OK"), metrics=True) as client:
        client.run(client.create())
        scrape = Scrape(client)
    assert scrape.labels("tool_calls_total", "tool") == {"other"}
    assert scrape("tool_calls_total", tool="other", outcome="error") == 100


def test_tools_that_come_and_go_are_a_bounded_number_of_labels() -> None:
    metrics = Metrics(Observer())
    for number in range(1000):
        metrics.start_span(ToolSpan("call", f"server__tool_{number}", offered=True)).end(Result("ok"))
    found = samples(metrics.render().decode())
    calls = {dict(labels)["tool"]: value for (name, labels), value in found.items() if name == "tool_calls_total"}
    assert len(calls) == 201
    assert calls["other"] == 800


def test_requests_count_by_route_method_and_status() -> None:
    with Client(metrics=True) as client:
        for _ in range(2):
            client.get(f"/sessions/{client.create()}")
        client.get("/sessions/session-unknown")
        client.get("/v1/models/a/b")
        scrape = Scrape(client)
    assert scrape("http_requests_total", route="/sessions", method="POST", status="201") == 2
    assert scrape("http_requests_total", route="/sessions/{id}", method="GET", status="200") == 2
    assert scrape("http_requests_total", route="/sessions/{id}", method="GET", status="404") == 1
    assert scrape("http_requests_total", route="/v1/models/{model}", method="GET", status="404") == 1


def test_whatever_callers_send_there_are_few_labels() -> None:
    with Client(metrics=True) as client:
        for number in range(100):
            client.request(f"M{number}", f"/no/{number}?x={number}")
            client.request("GET", f'/sessions/session-{number}"}}\n evil 1')
            client.request("POST", "/sessions/session-x/run", {"message": "Hi", "model": f"m{number}"})
            client.request(
                "GET", "/sessions", headers={"Host": f"h{number}.example.org", "X-Request-Id": f"r{number}"}
            )
        scrape = Scrape(client)
        routes = {rule.rule for rule in client.app.url_map.iter_rules()}
    found = scrape.labels("http_requests_total", "route")
    assert found == {"other", "/sessions/{id}", "/sessions/{id}/run", "/sessions"}
    assert {route.replace("{id}", "<session_id>") for route in found} - {"other"} <= routes
    assert scrape.labels("http_requests_total", "method") == {"other", "GET", "POST"}
    assert scrape.labels("http_requests_total", "status") <= {"400", "403", "404", "405"}
    assert scrape("http_requests_total", route="other", method="other", status="404") == 100


def test_the_files_of_the_page_are_one_route() -> None:
    with Client(metrics=True) as client:
        for path in ("/page.js", "/all.css", "/no.js"):
            client.get(path)
        scrape = Scrape(client)
    assert scrape("http_requests_total", route="/{name}", method="GET", status="200") == 2
    assert scrape("http_requests_total", route="other", method="GET", status="404") == 1


def test_errors_of_the_store_count_once_each() -> None:
    storage = BreakableStorage()
    with Client(tool_call("calculator", {"expression": "1+1"}), storage=storage, metrics=True) as client:
        session = client.create()
        storage.broken = True
        assert error_of(client.run(session)) == (503, "storage_unavailable")  # the question cannot be stored
        assert Scrape(client)("store_errors_total", error="storage_unavailable") == 1
        storage.broken = False

        def break_it(request: dict[str, Any]) -> Any:
            storage.broken = True
            return answer("OK")(request)

        client.model.forget()
        client.model.then(break_it)
        assert error_of(client.run(session)) == (503, "storage_unavailable")  # the answer cannot
        scrape = Scrape(client)
    assert scrape("store_errors_total", error="storage_unavailable") == 2
    assert scrape("turns_total", status="storage_unavailable") == 1


def test_a_session_that_cannot_be_understood_counts(tmp_path: Path) -> None:
    with Client(storage=FileStorage.open(str(tmp_path)), metrics=True) as client:
        session = client.create()
        (tmp_path / f"{session}.json").write_text("{]")
        assert client.get(f"/sessions/{session}").status_code == 500
        assert Scrape(client)("store_errors_total", error="session_corrupt") == 1


def test_two_apps_count_apart() -> None:
    with Client(metrics=True) as one, Client(metrics=True) as other:
        one.run(one.create())
        assert Scrape(one)("turns_total", status="completed") == 1
        assert Scrape(other)("turns_total", status="completed") == 0


def test_no_text_key_id_or_model_is_in_the_metrics() -> None:
    with Client(answer("Very secret"), metrics=True, models="*") as client:
        session = client.create()
        client.request("POST", f"/sessions/{session}/run", {"message": "Most private", "model": "my-model"})
        text = Scrape(client).text
    for word in ("secret", "private", session, client.settings.api_key, "my-model"):
        assert word not in text


def unauthorized(response: TestResponse) -> bool:
    return error_of(response) == (401, "unauthorized") and response.headers["WWW-Authenticate"] == "Bearer"


def test_with_a_token_the_metrics_need_it() -> None:
    with Client(metrics=True, auth_token="token") as client:
        assert unauthorized(client.get("/metrics"))
        assert client.get("/metrics", Authorization="Bearer token").status_code == 200


def test_without_the_flag_there_are_no_metrics() -> None:
    with Client() as client:
        assert error_of(client.get("/metrics")) == (404, "not_found")


def test_with_users_the_metrics_need_a_token_and_name_no_user(serve: Callable[..., Server], tmp_path: Path) -> None:
    users = write(tmp_path / "users", *(f"{name} {token}" for name, token in TOKENS.items()))
    server = serve("-demo", "-metrics", f"-users={users}")
    assert server.request("GET", "/metrics").status == 401
    for user in TOKENS:
        session = server.request("POST", "/sessions", headers=by(user)).json["id"]
        server.request("POST", f"/sessions/{session}/run", {"message": "2 + 3"}, by(user))
    text = server.request("GET", "/metrics", headers=by("bob")).text
    found = samples(text)
    assert found[("turns_total", (("status", "completed"),))] == 2
    assert found[("tool_calls_total", (("outcome", "ok"), ("tool", "calculator")))] == 2
    assert not re.search(r"\b(ann|bob)\b|token-of|session-", text)


def test_the_flag_without_the_library_is_an_error_that_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)  # as where it is not installed
    monkeypatch.delitem(sys.modules, "session_core.telemetry.metrics")
    assert main(["-demo", "-port=0", "-metrics"]) == 2
    line = capsys.readouterr().err
    assert line == "session_server: -metrics needs prometheus-client: pip install '.[metrics]'\n"


# --- the dashboard ---

DASHBOARD = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
VARIABLES = {variable["name"] for variable in DASHBOARD["templating"]["list"]}


@pytest.fixture(scope="module")
def everything() -> dict[str, set[str]]:
    """The labels of every metric that there is, by name."""
    with Client(tool_call("calculator", {"expression": "1+1"}), metrics=True) as client:
        client.run(client.create())
        client.get("/sessions")
        scrape = Scrape(client)
    found: dict[str, set[str]] = {}
    for name, labels in scrape.samples:
        full = name if name.startswith("process_") else f"session_server_{name}"
        found.setdefault(full, set()).update(dict(labels))
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_dashboard_asks_for_metrics_and_labels_that_exist(
    expression: str, everything: dict[str, set[str]]
) -> None:
    names = re.findall(r"\b(?:session_server|process)_\w+", expression)
    assert names
    assert set(names) <= set(everything)
    labels = re.findall(r'(\w+)\s*(?:=|!=|=~|!~)\s*"', expression)
    for group in re.findall(r"by \(([^)]*)\)", expression):
        labels += [label.strip() for label in group.split(",")]
    known = {"job", "instance"}.union(*(everything[name] for name in names))
    assert set(labels) <= known
    assert set(re.findall(r"\$(\w+)", expression)) - {"__rate_interval"} <= VARIABLES
    assert expression.count("(") == expression.count(")")


def test_the_dashboard_shows_every_metric(everything: dict[str, set[str]]) -> None:
    shown = {
        re.sub(r"_bucket$", "", name) for text in EXPRESSIONS for name in re.findall(r"session_server_\w+", text)
    }
    names = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in everything}
    made = {name for name in names if name.startswith("session_server_") and f"{name}_total" not in names}
    assert shown == made


def test_the_page_lists_every_metric(everything: dict[str, set[str]]) -> None:
    text = (ROOT / "docs" / "observing.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(session_server_\w+)` ", text, re.MULTILINE))
    names = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in everything}
    assert listed == {name for name in names if name.startswith("session_server_") and f"{name}_total" not in names}


def test_the_dashboard_can_be_imported() -> None:
    inputs = {one["name"] for one in DASHBOARD["__inputs"] if one["type"] == "datasource"}
    sources = [target["datasource"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert {source["uid"] for source in sources} == {f"${{{name}}}" for name in inputs}
    assert DASHBOARD["id"] is None
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
