"""How much of a request to the model equals the one before, which is what model servers can use again."""

import itertools
import json
from typing import Any

from agent import Agent, Cancellation
from benchmarks.bench import OURS, Bench
from session_core.data.message import StoredMessage, assistant_message
from session_core.model.demo import ModelServer, ScriptedReply, chunk, event
from session_core.model.events import Answer
from session_core.model.summarizing import SummedUp

_TURNS = 40
_LIMITS = (
    {},
    {"max_history": 10},
    {"max_history": 40},
    {"compact_at": 1000},
    {"compact_at": 2500},
)  # without a limit forty turns have about 4,500 tokens
_TEXT = "A sentence of about the length that people write. " * 4


def prefix(bench: Bench) -> None:
    """Forty turns of a session: the share of each request that the next one begins with, those for summaries among
    them, and the characters that the model server has to read anew."""
    for limit in _LIMITS:
        requests = _requests(**limit)
        shared = [_common(one, following) for one, following in itertools.pairwise(requests)]
        shares = [common / len(one) * 100 for common, one in zip(shared, requests, strict=False)]
        anew = sum(map(len, requests)) - sum(shared)
        flags = " ".join(f"-{name}={value}" for name, value in limit.items()) or "without a limit"
        what = f"of each request in the next one, {_TURNS} turns, {flags}"
        bench.add("prefix", f"mean {what}", "%", {OURS: [sum(shares) / len(shares)]})
        bench.add(
            "prefix", f"requests that begin anew, {what}", "", {OURS: [float(sum(share < 95 for share in shares))]}
        )
        bench.add("prefix", f"characters sent, {_TURNS} turns, {flags}", "", {OURS: [float(sum(map(len, requests)))]})
        bench.add("prefix", f"of these not in the request before, {_TURNS} turns, {flags}", "", {OURS: [float(anew)]})


def _common(one: str, other: str) -> int:
    """The length of their common beginning."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _requests(**limit: int) -> list[str]:
    """The instructions, tools and messages of each request, as the model server reads them, without the closing."""
    seen: list[str] = []

    def script(request: dict[str, Any]) -> ScriptedReply:
        texts = [json.dumps(part) for part in (*request.get("tools", ()), *request["messages"])]
        seen.append("\n".join(texts))
        usage = {**chunk({}), "usage": {"prompt_tokens": len(seen[-1]) // 4}}
        frames = [chunk({"content": _TEXT}), usage, chunk({}, "stop"), "[DONE]"]
        return ScriptedReply(list(map(event, frames)))

    history: list[StoredMessage] = []
    summary = ""
    model = ModelServer(script).start()  # to the end of the process
    agent = Agent(api_key="k", base_url=model.base_url, model="m", system_prompt=_TEXT, **limit)
    for number in range(_TURNS):
        for made in agent.sum_up(history, Cancellation(), if_due=True, summary=summary):
            if isinstance(made, SummedUp):
                ids = [message["id"] for message in history]
                history, summary = history[ids.index(made.until) + 1 :], made.content
        history.append({"id": f"q{number}", "role": "user", "content": f"{number}: {_TEXT}", "created_at": ""})
        last = list(agent.run(history, Cancellation(), summary=summary))[-1]
        assert isinstance(last, Answer)
        answer = assistant_message(last.content, **last.fields)
        history.append({**answer, "id": f"a{number}", "created_at": ""})
    agent.close()
    return seen


BENCHMARKS = {"prefix": prefix}
