"""How much of a request to the model equals the one before, which is what model servers can use again."""

import itertools
import json
from typing import Any

from agent import Agent, Cancellation
from benchmarks.bench import OURS, Bench
from session_core.data.message import MessageFields, assistant_message
from session_core.model.demo import ModelServer, ScriptedReply, chunk, event
from session_core.model.events import Answer

_TURNS = 40
_LIMITS = (0, 10, 40)
_TEXT = "A sentence of about the length that people write. " * 4


def prefix(bench: Bench) -> None:
    """Forty turns of a session: the share of each request that the next one begins with."""
    for limit in _LIMITS:
        requests = _requests(limit)
        shares = [_common(one, following) / len(one) * 100 for one, following in itertools.pairwise(requests)]
        what = f"of each request in the next one, {_TURNS} turns, -max_history={limit}"
        bench.add("prefix", f"mean {what}", "%", {OURS: [sum(shares) / len(shares)]})
        bench.add(
            "prefix", f"turns that begin anew, {what}", "", {OURS: [float(sum(share < 95 for share in shares))]}
        )


def _common(one: str, other: str) -> int:
    """The length of their common beginning."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _requests(limit: int) -> list[str]:
    """The instructions, tools and messages of each request, as the model server reads them, without the closing."""
    seen: list[str] = []

    def script(request: dict[str, Any]) -> ScriptedReply:
        texts = [json.dumps(part) for part in (*request.get("tools", ()), *request["messages"])]
        seen.append("\n".join(texts))
        return ScriptedReply([event(chunk({"content": _TEXT})), event(chunk({}, "stop")), event("[DONE]")])

    history: list[MessageFields] = []
    with ModelServer(script) as model:
        agent = Agent(api_key="k", base_url=model.base_url, model="m", system_prompt=_TEXT, max_history=limit)
        for number in range(_TURNS):
            history.append({"role": "user", "content": f"{number}: {_TEXT}"})
            last = list(agent.run(history, Cancellation()))[-1]
            assert isinstance(last, Answer)
            history.append(assistant_message(last.content, **last.fields))
        agent.close()
    return seen


BENCHMARKS = {"prefix": prefix}
